"""`automagik secrets`: providers' keys are stored encrypted, and never shown."""

from cli_harness import Command

VALUE = "sk-ant-a-key-that-nobody-sees"


def test_a_secret_is_stored_listed_without_its_value_and_forgotten(command: Command) -> None:
    stored = command("secrets", "set", "anthropic_api_key", stdin=f"{VALUE}\n")
    assert (stored.code, VALUE in stored.out + stored.err) == (0, False)

    listed = command("secrets", "list", "--json")
    assert [line["name"] for line in listed.lines if line["stored"]] == ["anthropic_api_key"]
    assert VALUE not in listed.out
    for path in command.data_dir.rglob("*"):
        assert not path.is_file() or VALUE.encode() not in path.read_bytes(), path

    assert command("secrets", "delete", "anthropic_api_key").code == 0
    gone = command("secrets", "delete", "anthropic_api_key")
    assert gone.code == 5
    assert not any(line["stored"] for line in command("secrets", "list", "--json").lines)


def test_a_person_types_it_without_an_echo(command: Command) -> None:
    done = command.on_terminal("secrets", "set", "github_token", types=[("github_token: ", f"{VALUE}\n")])
    assert (done.code, VALUE in done.out) == (0, False)


def test_what_the_platform_does_not_ask_for_is_refused_with_the_nearest_name(command: Command) -> None:
    unknown = command("secrets", "set", "antropic_api_key", stdin=VALUE)
    assert (unknown.code, "anthropic_api_key" in unknown.err) == (2, True)
    for value in ("", "two\x07bells", "schlüssel"):
        refused = command("secrets", "set", "github_token", stdin=value)
        assert (refused.code, "visible ASCII" in refused.err) == (2, True), value
