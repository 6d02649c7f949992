"""`budgets` and `usage`: which requests they make, and what they show."""

from typing import Any

import pytest
from cli_harness import Answer, Asked, Command, StubApi

BUDGET: dict[str, Any] = {
    "budget_id": "budget_1",
    "scope": "agent",
    "scope_id": "simple",
    "period": "month",
    "period_start": "2026-11",
    "limit_usd": "25.000000",
    "soft_limit_usd": None,
    "spent_usd": "1.500000",
    "reserved_usd": "0.250000",
}


def group(**changes: Any) -> dict[str, Any]:
    counts = {"runs": 2, "requests": 3, "input_tokens": 100, "output_tokens": 50, "unpriced_runs": 0}
    empty = dict.fromkeys(("day", "key_id", "user_id", "agent", "workflow"))
    return {**empty, **counts, "cost_usd": "0.500000", **changes}


def test_a_budget_is_set_by_one_request(api: StubApi, command: Command) -> None:
    api.on("POST", "/api/v1/budgets", BUDGET)
    done = command("budgets", "set", "agent", "simple", "--limit", "25", "--warn-at", "20")
    assert done.code == 0
    assert "limits the agent 'simple' to $25.000000 (month)" in done.err and "Spent: $1.500000" in done.err
    asked = {"scope": "agent", "scope_id": "simple", "period": "month", "limit_usd": "25", "soft_limit_usd": "20"}
    assert api.bodies("POST") == [asked]
    command("budgets", "set", "organisation", "--limit", "100", "--period", "total", "--json")
    assert api.bodies("POST")[-1] == {"scope": "organisation", "period": "total", "limit_usd": "100"}


def test_a_budget_without_a_limit_is_wrong_usage(api: StubApi, command: Command) -> None:
    done = command("budgets", "set", "organisation")
    assert done.code == 2 and "--limit" in done.err and api.asked == []
    done = command("budgets", "set", "organisation", "--limit", "25 EUR")
    assert done.code == 2 and "'25 EUR' is no amount of US dollars" in done.err and api.asked == []


def test_the_budget_of_a_workflow_is_told_to_be_one_of_an_agent(api: StubApi, command: Command) -> None:
    done = command("budgets", "set", "workflow", "implement", "--limit", "3")
    assert done.code == 2 and "automagik budgets set agent implement --limit 3" in done.err and api.asked == []


def test_budgets_are_listed_shown_and_deleted(api: StubApi, command: Command) -> None:
    api.on("GET", "/api/v1/budgets", {"data": [BUDGET], "next_cursor": None})
    api.on("GET", "/api/v1/budgets/budget_1", BUDGET)
    api.on("DELETE", "/api/v1/budgets/budget_1", Answer(status=204))
    assert command("budgets", "list").out.split("\t")[:4] == ["budget_1", "agent", "simple", "month"]
    assert command("budgets", "list", "--scope", "run", "--json").lines == [BUDGET]
    assert api.asked[-1].query["scope"] == "run"
    assert "spent_usd" in command("budgets", "show", "budget_1").out
    assert command("budgets", "delete", "budget_1").code == 2
    assert command("budgets", "delete", "budget_1", "--yes").code == 0


def test_usage_is_shown_over_all_pages_the_dearest_first(api: StubApi, command: Command) -> None:
    def pages(asked: Asked) -> Answer:
        first = "cursor" not in asked.query
        data = [group(agent="a")] if first else [group(agent="b", cost_usd="2.000000")]
        return Answer(
            {
                "from": "2026-11-01",
                "to": "2026-11-28",
                "group_by": ["agent"],
                "total": {"runs": 4, "cost_usd": "2.500000", "unpriced_runs": 1},
                "data": data,
                "next_cursor": "next" if first else None,
            }
        )

    api.on("GET", "/api/v1/usage", pages)
    done = command("usage", "--by", "agent", "--from", "2026-11-01", "--key", "key_1")
    assert [line.split("\t")[0] for line in done.out.splitlines()] == ["b", "a"]
    assert "4 runs, $2.500000; of 1 more the cost is not known." in done.err
    asked = api.asked[0].query
    assert (asked["group_by"], asked["from"], asked["key_id"]) == ("agent", "2026-11-01", "key_1")
    assert [len(line["data"]) for line in command("usage", "--json").lines] == [2]


@pytest.mark.parametrize(("option", "value"), [("--from", "yesterday"), ("--to", "2026-02-30"), ("--from", "20261101")])
def test_a_day_that_is_none_is_told_with_its_option_and_the_form_it_takes(
    api: StubApi, command: Command, option: str, value: str
) -> None:
    done = command("usage", option, value)
    assert done.code == 2 and f"{option}: '{value}' is no day of the calendar" in done.err
    assert "YYYY-MM-DD" in done.err and api.asked == []


def test_a_user_that_is_no_uuid_is_told_with_its_option(api: StubApi, command: Command) -> None:
    done = command("usage", "--user", "ada")
    assert done.code == 2 and "--user: 'ada' is no UUID" in done.err and api.asked == []
