import contextlib

import pytest

from automagik.errors import InvalidInput
from automagik.memory import PromptTemplate, is_name


@pytest.mark.parametrize(
    ("source", "values", "filled"),
    [
        ("plain", {}, "plain"),
        ("", {}, ""),
        ("Hi {{name}}!", {"name": "Ann"}, "Hi Ann!"),
        ("Hi {{ name }}{{name}}", {"name": "Ann"}, "Hi AnnAnn"),
        ("{{a}}{{b}}", {"a": "1"}, "1"),
        ('{"json": {"x": 1}}', {}, '{"json": {"x": 1}}'),
        ('{"user": "{{user.name-x}}"}', {"user.name-x": "Ann"}, '{"user": "Ann"}'),
        (r"\{{name}}", {"name": "Ann"}, "{{name}}"),
        (r"\\{{name}}", {"name": "Ann"}, "\\Ann"),
        (r"C:\dir\x {{name}}", {"name": "Ann"}, "C:\\dir\\x Ann"),
        ("a }} b", {}, "a }} b"),
        ("{{a}}}", {"a": "1"}, "1}"),
        ("{{a}}", {"a": "{{b}} {{a}} \\{{"}, "{{b}} {{a}} \\{{"),
    ],
)
def test_a_template_is_filled_in_one_pass(source: str, values: dict[str, str], filled: str) -> None:
    assert PromptTemplate.parse(source).fill(values) == filled


def test_names_come_once_in_the_order_of_the_text() -> None:
    assert PromptTemplate.parse("{{b}} {{a}} {{b}} \\{{c}}").names == ("b", "a")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("one\ntwo {{name", "not closed (line 2, column 5)"),
        ("{{", "not closed (line 1, column 1)"),
        ("{{a {{b}}", "not closed (line 1, column 1)"),
        ("{{a\n}}", "not closed (line 1, column 1)"),
        ("{{}}", "no name (line 1, column 1)"),
        ("x{{  }}", "no name (line 1, column 2)"),
        ("{{{name}}}", "'{name' is no name"),
        ("{{1st}}", "'1st' is no name"),
        ("{{#if x}}", "'#if x' is no name"),
        ("{{ünter}}", "is no name"),
        ("{{" + "a" * 129 + "}}", "is no name"),
    ],
)
def test_what_is_no_template_is_refused_with_its_place(source: str, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        PromptTemplate.parse(source, field=("body", "prompt_text"))
    assert says in refused.value.detail
    assert refused.value.field == ("body", "prompt_text")
    assert refused.value.hint


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    template = PromptTemplate.parse("Hello\n  {{favorite_color}}")
    template.check_names({"favorite_color"})
    with pytest.raises(InvalidInput) as refused:
        template.check_names({"favourite_color", "name"})
    assert "'favorite_color' (line 2, column 3)" in refused.value.detail
    assert refused.value.hint == "Did you mean 'favourite_color'?"


@pytest.mark.parametrize(
    "hostile",
    ["{" * 1_000_000, "\\" * 1_000_000 + "{{a}}", "{{a}}" * 200_000, "{{" + " " * 1_000_000 + "}}", r"\{{" * 300_000],
    ids=["braces", "backslashes", "places", "spaces", "escapes"],
)
def test_a_hostile_megabyte_is_parsed_or_refused_at_once(hostile: str) -> None:
    """A parser that looked again at what it had seen would run for minutes here, into the suite's limit."""
    with contextlib.suppress(InvalidInput):
        PromptTemplate.parse(hostile).fill({})


def test_names_are_ascii_and_of_bounded_length() -> None:
    assert all(map(is_name, ["a", "_", "A.b-c_9", "x" * 128]))
    assert not any(map(is_name, ["", "9", "-a", "a b", "x" * 129, "ü", "a\n"]))
