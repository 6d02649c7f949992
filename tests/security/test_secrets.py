"""Secrets: encrypted at rest, under a key that every process must have, which can be changed and is never made anew silently."""

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from pydantic import SecretStr

from automagik.errors import ConfigurationError, NotFound
from automagik.security.sealing import PlatformKey, key_id_of, parse_keys, reseal, seal, unseal
from automagik.security.secrets import SecretStore
from automagik.settings import Settings
from automagik.store import Store
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings
from automagik.types import SystemClock

pytestmark = pytest.mark.anyio

VALUE = SecretStr("whsec_a-value-that-nobody-sees")


@pytest.fixture
async def settings(
    dialect: Literal["sqlite", "postgresql"], tmp_path: Path, request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[Settings]:
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    async with fresh_settings(dialect, tmp_path / "first", server=server) as made:
        yield made


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    opened = Store.from_settings(settings, SystemClock())
    await opened.open()
    yield opened
    await opened.close()


async def opened(store: Store, settings: Settings, *keys: PlatformKey, **changes: Any) -> SecretStore:
    """The secrets as a process with these settings, and these keys in its environment, has them."""
    key = SecretStr(",".join(key.text for key in keys)) if keys else None
    secrets = SecretStore(store, settings.model_copy(update={"secret_key": key, **changes}))
    await secrets.open()
    return secrets


def other_host(settings: Settings) -> dict[str, Any]:
    """A host that has another data folder."""
    return {"data_dir": settings.data_dir.parent / "second"}


async def tokens(store: Store) -> dict[str, bytes]:
    return await store.read(lambda tx: {secret.name: secret.token for secret in tx.secrets.all()})


async def test_a_secret_comes_back_and_only_its_encrypted_form_is_stored(store: Store, settings: Settings) -> None:
    secrets = await opened(store, settings)
    await secrets.set("a", VALUE)
    await secrets.set("b", VALUE)
    assert await secrets.get("a") == VALUE
    assert await secrets.names() == ["a", "b"]
    stored = await tokens(store)
    assert VALUE.get_secret_value().encode() not in stored["a"]
    assert stored["a"] != stored["b"]
    for file in settings.data_dir.glob("automagik.db*"):
        assert VALUE.get_secret_value().encode() not in file.read_bytes()
    await secrets.set("a", SecretStr("another"))
    assert await (await opened(store, settings)).get("a") == SecretStr("another")
    await secrets.delete("a")
    for work in (secrets.get("a"), secrets.delete("a")):
        with pytest.raises(NotFound, match="no secret 'a'"):
            await work


async def test_a_row_that_is_changed_or_put_under_another_name_is_not_opened(store: Store, settings: Settings) -> None:
    secrets = await opened(store, settings)
    await secrets.set("a", VALUE)
    token = (await tokens(store))["a"]
    await store.write(lambda tx: tx.secrets.put("b", token))
    await store.write(lambda tx: tx.secrets.put("c", token[:-1] + bytes([token[-1] ^ 1])))
    await store.write(lambda tx: tx.secrets.put("d", token[:40]))
    for name in ("b", "c", "d"):
        with pytest.raises(ConfigurationError, match=f"'{name}' was changed outside") as refused:
            await secrets.get(name)
        assert VALUE.get_secret_value() not in f"{refused.value!r} {refused.value.hint}"
    checked = await secrets.check()
    assert (checked.total, checked.unreadable) == (4, ["b", "c", "d"])
    assert await secrets.get("a") == VALUE


@pytest.mark.parametrize("place", [0, 10, 30, 68, 69, 85, -1])
def test_every_part_of_a_sealed_secret_is_authenticated(place: int) -> None:
    key = PlatformKey.new()
    token = bytearray(seal(key, "a", b"value"))
    token[place] ^= 1
    with pytest.raises(ConfigurationError):
        unseal(key, "a", bytes(token))
    with pytest.raises(ConfigurationError):
        reseal(key, PlatformKey.new(), "a", bytes(token))


async def test_the_key_file_is_made_at_the_first_start_for_its_owner_only(store: Store, settings: Settings) -> None:
    await opened(store, settings)
    file = settings.data_dir / "secret.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    made = file.read_text()
    await opened(store, settings)
    assert file.read_text() == made
    assert [path.name for path in settings.data_dir.iterdir() if "secret" in path.name] == ["secret.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
async def test_a_key_file_that_others_may_read_is_refused(store: Store, settings: Settings, mode: int) -> None:
    await opened(store, settings)
    (settings.data_dir / "secret.key").chmod(mode)
    with pytest.raises(ConfigurationError, match=f"open to other users \\(mode 0{mode:o}\\)") as refused:
        await opened(store, settings)
    assert "chmod 600" in str(refused.value.hint)


@pytest.mark.parametrize("text", ["", "short", "x" * 44, "=" * 44, "é" * 43, f"{'A' * 43}=,{'A' * 20}"])
async def test_what_is_no_key_is_refused_and_not_repeated(store: Store, settings: Settings, text: str) -> None:
    with pytest.raises(ConfigurationError, match="AUTOMAGIK_SECRET_KEY is not a key") as refused:
        await SecretStore(store, settings.model_copy(update={"secret_key": SecretStr(text)})).open()
    assert not text or text not in f"{refused.value!r} {refused.value.hint}"
    settings.data_dir.mkdir(exist_ok=True)
    file = settings.data_dir / "secret.key"
    file.write_text("garbage\n")
    file.chmod(0o600)
    with pytest.raises(ConfigurationError, match="is not a key"):
        await opened(store, settings)
    assert file.read_text() == "garbage\n"


@pytest.mark.parametrize("spelled", ["A" * 43 + "=", "A" * 43, " " + "A" * 43 + "= ", "_-" * 21 + "A"])
def test_a_key_is_base64_of_either_alphabet(spelled: str) -> None:
    (key,) = parse_keys([spelled], "it")
    assert parse_keys([key.text], "it") == (key,)


async def test_a_lost_key_file_is_said_and_no_key_is_made_in_its_place(store: Store, settings: Settings) -> None:
    secrets = await opened(store, settings)
    await secrets.set("a", VALUE)
    file = settings.data_dir / "secret.key"
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(ConfigurationError, match="a key that is not here") as refused:
        await opened(store, settings)
    assert "secrets reset" in str(refused.value.hint)
    assert not file.exists()
    file.write_bytes(kept)
    file.chmod(0o600)
    assert await (await opened(store, settings)).get("a") == VALUE
    file.unlink()
    assert await SecretStore(store, settings).reset() == 1
    fresh = await opened(store, settings)
    assert await fresh.names() == []
    await fresh.set("a", VALUE)


async def test_a_process_with_another_key_does_not_start(store: Store, settings: Settings) -> None:
    right, wrong = PlatformKey.new(), PlatformKey.new()
    secrets = await opened(store, settings, right)
    await secrets.set("a", VALUE)
    with pytest.raises(ConfigurationError, match="another key than that of AUTOMAGIK_SECRET_KEY") as refused:
        await opened(store, settings, wrong)
    assert "NEW,OLD" in str(refused.value.hint)
    shown = f"{refused.value!r} {refused.value.hint} {right!r} {await secrets.check()!r}"
    assert not any(text in shown for text in (right.text, wrong.text, repr(right.wrapping)))
    assert await (await opened(store, settings, right, **other_host(settings))).get("a") == VALUE


async def test_on_sqlite_a_key_that_nothing_depends_on_may_be_another(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    await opened(store, settings)
    (tmp_path / "secret.key").unlink()
    key = PlatformKey.new()
    secrets = await opened(store, settings, key)
    await secrets.set("a", VALUE)
    with pytest.raises(ConfigurationError):
        await opened(store, settings)
    assert await (await opened(store, settings, key)).get("a") == VALUE
    await store.close()


async def test_a_key_is_changed_without_a_moment_at_which_a_process_can_not_read(
    store: Store, settings: Settings
) -> None:
    old, new = PlatformKey.new(), PlatformKey.new()
    first = await opened(store, settings, old)
    await first.set("a", VALUE)
    second = await opened(store, settings, new, old)  # started anew; the first is not yet
    await second.set("b", VALUE)
    assert await first.get("b") == VALUE
    with pytest.raises(ConfigurationError):
        await opened(store, settings, new)
    before = await tokens(store)
    assert (await second.check()).behind == 2
    assert await second.rotate() == 2
    after = await tokens(store)
    assert {key_id_of(token) for token in before.values()} == {old.key_id}
    assert {key_id_of(token) for token in after.values()} == {new.key_id}
    assert all(after[name][69:] == before[name][69:] for name in after)  # the secrets themselves were not touched
    assert await second.rotate() == 0
    await second.set("c", VALUE)
    third = await opened(store, settings, new)
    assert [await third.get(name) for name in "abc"] == [VALUE] * 3
    assert (await third.check()).behind == 0
    with pytest.raises(ConfigurationError):
        await opened(store, settings, old)
    with pytest.raises(ConfigurationError, match="another key"):
        await first.set("d", VALUE)
    assert "d" not in await third.names()


async def test_the_key_in_a_file_is_changed_under_a_server_that_runs(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    running = await opened(store, settings)
    await running.set("a", VALUE)
    file = tmp_path / "secret.key"
    before = file.read_text()
    other = SecretStore(store, settings)
    await other.open(make=False)
    assert await asyncio.gather(other.rotate(), other.rotate()) in ([1, 1], [1, 0], [0, 1])
    assert file.read_text() != before
    assert len(file.read_text().splitlines()) == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert await running.get("a") == VALUE
    await running.set("b", VALUE)
    assert await (await opened(store, settings)).get("b") == VALUE
    await store.close()


async def test_a_change_of_the_key_file_that_was_cut_off_is_completed(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    secrets = await opened(store, settings)
    await secrets.set("a", VALUE)
    file = tmp_path / "secret.key"
    new = PlatformKey.new()
    file.write_text(f"{new.text}\n{file.read_text()}")  # as far as it came
    again = await opened(store, settings)
    assert await again.get("a") == VALUE
    assert await again.rotate() == 1
    assert file.read_text() == f"{new.text}\n"
    assert await again.get("a") == VALUE
    await store.close()


async def test_with_several_hosts_a_key_in_a_file_is_not_changed_by_one_of_them(
    store: Store, settings: Settings, dialect: str
) -> None:
    secrets = await opened(store, settings)
    if dialect == "sqlite":
        assert await secrets.rotate() == 0
        return
    with pytest.raises(ConfigurationError, match="on every host"):
        await secrets.rotate()


async def test_of_two_hosts_that_start_first_at_once_one_is_told_to_take_the_others_key(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    for attempt in range(10):
        async with fresh_settings("postgresql", tmp_path / f"first{attempt}", server=postgres_server) as settings:
            store = Store.from_settings(settings, SystemClock())
            await store.open()
            hosts = [settings, settings.model_copy(update={"data_dir": tmp_path / f"second{attempt}"})]
            ended = await asyncio.gather(*(opened(store, host) for host in hosts), return_exceptions=True)
            (winner,) = [index for index, end in enumerate(ended) if isinstance(end, SecretStore)]
            refused = ended[1 - winner]
            assert isinstance(refused, ConfigurationError)
            assert "AUTOMAGIK_SECRET_KEY" in str(refused.hint)
            assert not (hosts[1 - winner].data_dir / "secret.key").exists()
            secrets = cast("SecretStore", ended[winner])
            await secrets.set("a", VALUE)
            (key,) = parse_keys([(hosts[winner].data_dir / "secret.key").read_text()], "the file")
            assert await (await opened(store, hosts[1 - winner], key)).get("a") == VALUE
            await store.close()


async def test_processes_of_one_host_that_start_first_at_once_agree(store: Store, settings: Settings) -> None:
    started = await asyncio.gather(*(opened(store, settings) for _ in range(8)))
    await started[0].set("a", VALUE)
    assert [await secrets.get("a") for secrets in started] == [VALUE] * 8
    assert [path.name for path in settings.data_dir.iterdir() if "secret" in path.name] == ["secret.key"]


async def test_secrets_that_are_set_while_the_key_changes_are_under_a_key_that_is_known(
    store: Store, settings: Settings
) -> None:
    old, new = PlatformKey.new(), PlatformKey.new()
    await opened(store, settings, old)
    processes = [await opened(store, settings, new, old) for _ in range(3)]
    sets = [processes[index % 3].set(f"s{index}", VALUE) for index in range(60)]
    await asyncio.gather(*sets[:30], processes[0].rotate(), *sets[30:])
    only_new = await opened(store, settings, new)
    assert (await only_new.check()).unreadable == []
    assert [await only_new.get(f"s{index}") for index in range(60)] == [VALUE] * 60


async def test_a_data_folder_that_can_not_be_written_to_is_said(store: Store, settings: Settings) -> None:
    no_folder = settings.data_dir.parent / "file"
    no_folder.write_text("")
    with pytest.raises(ConfigurationError, match="can't be used") as refused:
        await opened(store, settings, data_dir=no_folder)
    assert "AUTOMAGIK_SECRET_KEY" in str(refused.value.hint)


async def test_a_folder_in_the_place_of_the_key_file_is_said(store: Store, settings: Settings) -> None:
    (settings.data_dir / "secret.key").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="is no file"):
        await opened(store, settings)
