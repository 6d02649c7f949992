"""Which hosts `registries` means: what an administrator says, else what the package managers of this host say of themselves."""

from pathlib import Path

import pytest

from automagik.sandbox.registries import RegistryFinder
from automagik.settings import Settings

pytestmark = pytest.mark.anyio


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with package managers of its own, first on the PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    script(programs, "npm", '[ "$3" = registry ] && echo https://user:secret@npm.example:4873/; exit 0')
    script(
        programs,
        "go",
        """echo '{"GOPROXY": "https://go.example,https://u:p@more.example|direct", "GOSUMDB": "sum.example"}'""",
    )
    script(programs, "cargo", "exit 1")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    (tmp_path / ".npmrc").write_text("@team:registry=https://team.example/npm/\n//team.example/:_authToken=secret\n")
    pip = tmp_path / ".config/pip"
    pip.mkdir(parents=True)
    (pip / "pip.conf").write_text(
        "[global]\nindex-url = https://me:secret@pip.example/simple\nextra-index-url = https://extra.example:8443/simple\n"
    )
    index = tmp_path / ".cargo/registry/index/crates.example-0123456789abcdef"
    index.mkdir(parents=True)
    (index / "config.json").write_text('{"dl": "https://files.example/crates"}')
    (tmp_path / ".cargo/config.toml").write_text('[source.mirror]\nregistry = "sparse+https://mirror.example/index/"\n')
    return tmp_path


async def test_the_hosts_are_those_that_the_package_managers_are_set_to(home: Path) -> None:
    found = await RegistryFinder(Settings(), home=home).find()
    assert set(found.hosts) >= {
        *("npm.example:4873", "team.example", "go.example", "more.example", "sum.example"),
        *("pip.example", "extra.example:8443", "crates.example", "files.example", "mirror.example"),
    }


async def test_no_name_and_password_goes_into_a_sandbox(home: Path) -> None:
    found = await RegistryFinder(Settings(), home=home).find()
    assert "secret" not in str(found)
    assert found.env["PIP_INDEX_URL"] == "https://pip.example/simple"
    assert found.env["npm_config_registry"] == "https://npm.example:4873/"
    assert found.env["GOPROXY"] == "https://go.example,https://more.example"


async def test_an_administrator_has_the_last_word(home: Path) -> None:
    settings = Settings.model_validate({"registry_hosts": ["only.example"]})
    assert (await RegistryFinder(settings, home=home).find()).hosts == ("only.example",)


async def test_a_package_manager_that_fails_or_prints_nonsense_adds_nothing(home: Path) -> None:
    script(home / "bin", "npm", "echo not a url")
    script(home / "bin", "go", "echo {")
    found = await RegistryFinder(Settings(), home=home).find()
    assert "npm.example:4873" not in found.hosts
    assert "GOPROXY" not in found.env
