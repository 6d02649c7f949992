"""The profile: a private file whose key goes to one server only."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cli_harness import Answer, Command, StubApi, problem

PAGE: dict[str, Any] = {"data": [], "next_cursor": None}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def keyless(api: StubApi, command: Command) -> StubApi:
    """The server, with neither its address nor a key in the environment."""
    del command.environment["AUTOMAGIK_URL"], command.environment["AUTOMAGIK_KEY"]
    api.on("GET", "/api/v1/runs", PAGE)
    return api


def test_the_profile_gives_server_and_key(keyless: StubApi, command: Command) -> None:
    command.write_profile(keyless.url, "amk_" + "p" * 43)
    assert command("runs", "list").code == 0
    assert keyless.asked[0].headers["x-api-key"] == "amk_" + "p" * 43


def test_the_environments_key_goes_before_the_profiles(keyless: StubApi, command: Command) -> None:
    command.write_profile(keyless.url)
    command("runs", "list", AUTOMAGIK_KEY="amk_" + "e" * 43)
    assert keyless.asked[0].headers["x-api-key"] == "amk_" + "e" * 43


@pytest.mark.parametrize("profile_host", ["localhost", "127.0.0.2"])
@pytest.mark.parametrize("way", ["option", "environment"])
def test_the_profiles_key_is_not_sent_to_another_origin(
    keyless: StubApi, command: Command, way: str, profile_host: str
) -> None:
    own = keyless.url.replace("127.0.0.1", profile_host)
    command.write_profile(own)
    keyless.on("GET", "/api/v1/runs", problem(401, "unauthorized", "The API key is missing.", hint="Send it."))
    by_option = ["--url", keyless.url] if way == "option" else []
    done = command("runs", "list", *by_option, **({} if by_option else {"AUTOMAGIK_URL": keyless.url}))
    assert done.code == 4
    assert "x-api-key" not in keyless.asked[0].headers
    assert own in done.err
    assert "AUTOMAGIK_KEY" in done.err


def test_the_profiles_key_is_sent_however_its_own_address_is_written(keyless: StubApi, command: Command) -> None:
    command.write_profile(keyless.url)
    assert command("runs", "list", "--url", keyless.url.replace("http", "HTTP") + "/").code == 0
    assert "x-api-key" in keyless.asked[0].headers


def test_a_redirect_leads_no_key_away(keyless: StubApi, command: Command) -> None:
    keyless.on("GET", "/api/v1/runs", Answer(status=302, headers={"location": f"{keyless.url}/elsewhere"}))
    command.write_profile(keyless.url)
    assert command("runs", "list").code == 3
    assert [asked.path for asked in keyless.asked] == ["/api/v1/runs"]


def test_no_proxy_stands_between_this_machine_and_itself(keyless: StubApi, command: Command) -> None:
    command.write_profile(keyless.url)
    assert command("runs", "list", HTTP_PROXY="http://127.0.0.1:9", ALL_PROXY="http://127.0.0.1:9").code == 0


def test_without_any_key_the_way_to_one_is_told(keyless: StubApi, command: Command) -> None:
    keyless.on("GET", "/api/v1/runs", problem(401, "unauthorized", "The API key is missing."))
    done = command("runs", "list", "--url", keyless.url)
    assert done.code == 4
    assert "keys create --first" in done.err


def test_a_key_that_is_refused_is_told_with_where_it_came_from(keyless: StubApi, command: Command) -> None:
    keyless.on("GET", "/api/v1/runs", problem(401, "unauthorized", "The API key is unknown.", hint="Send it as ..."))
    command.write_profile(keyless.url)
    of_profile = command("runs", "list").err
    assert "The profile holds that key" in of_profile
    assert "keys create --first" in of_profile
    assert "AUTOMAGIK_KEY holds that key" in command("runs", "list", AUTOMAGIK_KEY="amk_" + "e" * 43).err


def test_a_profile_that_others_can_read_is_made_private_with_a_warning(keyless: StubApi, command: Command) -> None:
    command.write_profile(keyless.url, mode=0o644)
    done = command("runs", "list")
    assert done.code == 0
    assert mode(command.profile) == 0o600
    assert "could be read by others" in done.err
    assert command("runs", "list").err == ""


def test_a_profile_behind_a_link_or_of_no_use_is_refused(keyless: StubApi, command: Command, tmp_path: Path) -> None:
    command.write_profile(keyless.url)
    elsewhere = tmp_path / "elsewhere.json"
    command.profile.rename(elsewhere)
    command.profile.symlink_to(elsewhere)
    assert command("runs", "list").code == 4
    command.profile.unlink()
    command.profile.write_text('{"url": 1}')
    assert command("runs", "list").code == 2
    assert keyless.asked == []
    assert command("runs", "list", AUTOMAGIK_URL=keyless.url, AUTOMAGIK_KEY="amk_" + "e" * 43).code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_profile_of_another_user_is_refused(keyless: StubApi, command: Command) -> None:
    command.write_profile(keyless.url)
    os.chown(command.profile, 1234, 1234)
    done = command("runs", "list")
    assert done.code == 4
    assert "another user" in done.err


# -- keys create --first


def first(command: Command, *more: str, **environment: str) -> dict[str, object]:
    done = command("keys", "create", "--first", "--json", *more, **environment)
    assert done.code == 0, done
    return json.loads(done.out)


def test_the_first_key_goes_to_a_private_profile_and_not_to_a_pipe(command: Command) -> None:
    done = command("keys", "create", "--first")
    assert (done.code, done.out) == (0, "")
    saved = json.loads(command.profile.read_text())
    assert set(saved) == {"url", "key", "key_id"}
    assert saved["url"] == "http://127.0.0.1:8881"
    assert saved["key"] not in done.err
    assert saved["key_id"] in done.err
    assert str(command.profile) in done.err
    assert mode(command.profile) == 0o600
    assert mode(command.config_dir) == 0o700
    assert [path.name for path in command.config_dir.iterdir()] == ["profile.json"]


def test_the_first_key_is_shown_on_a_terminal(command: Command) -> None:
    done = command.on_terminal("keys", "create", "--first")
    assert done.code == 0
    assert json.loads(command.profile.read_text())["key"] in done.out


def test_a_profile_whose_key_works_is_kept(command: Command) -> None:
    made = first(command)
    before = command.profile.read_text()
    again = first(command)
    assert (made["created"], again["created"]) == (True, False)
    assert made["key_id"] == again["key_id"]
    assert command.profile.read_text() == before
    assert "key" not in made


def test_the_profile_follows_the_servers_port_and_keeps_its_key(command: Command) -> None:
    first(command)
    key = json.loads(command.profile.read_text())["key"]
    first(command, AUTOMAGIK_PORT="9999", AUTOMAGIK_HOST="0.0.0.0")
    saved = json.loads(command.profile.read_text())
    assert (saved["url"], saved["key"]) == ("http://127.0.0.1:9999", key)
    first(command, AUTOMAGIK_HOST="::1")
    assert json.loads(command.profile.read_text())["url"] == "http://[::1]:8881"


def test_a_profile_whose_key_this_data_folder_does_not_know_is_replaced(command: Command, tmp_path: Path) -> None:
    made = first(command)
    other = first(command, AUTOMAGIK_DATA_DIR=str(tmp_path / "other"))
    assert other["created"] is True
    assert other["key_id"] != made["key_id"]


def test_a_lost_profile_costs_one_command(command: Command) -> None:
    made = first(command)
    command.profile.unlink()
    done = command("keys", "create", "--first")
    assert done.code == 0
    assert str(made["key_id"]) in done.err
    assert json.loads(command.profile.read_text())["key_id"] != made["key_id"]


def test_a_spoilt_profile_is_replaced(command: Command) -> None:
    command.config_dir.mkdir(parents=True)
    command.profile.write_text("{")
    assert first(command)["created"] is True
    assert mode(command.profile) == 0o600
    assert mode(command.config_dir) == 0o700


def test_a_folder_that_can_not_be_used_is_told(command: Command, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    for variable in ("AUTOMAGIK_CONFIG_DIR", "AUTOMAGIK_DATA_DIR"):
        done = command("keys", "create", "--first", **{variable: str(blocked / "below")})
        assert done.code in {1, 4}
        assert done.err.startswith("error: ")
        assert "Traceback" not in done.err
