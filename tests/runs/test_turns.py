import asyncio
import uuid

import pytest

from automagik.runs.names import Name, SessionNames
from automagik.runs.turns import Turns

pytestmark = pytest.mark.anyio


@pytest.fixture
def working() -> bool:
    return False


async def test_a_run_waits_until_its_turn_has_come() -> None:
    turns = Turns()
    waiting = asyncio.ensure_future(turns.expect("run_1"))
    turns.come("run_2")
    await asyncio.sleep(0)
    assert not waiting.done()
    assert turns.waiting == ["run_1"]
    turns.come("run_1")
    async with asyncio.timeout(1):
        await waiting
    assert turns.waiting == []


async def test_a_turn_that_comes_before_anybody_waits_for_it_is_not_lost() -> None:
    turns = Turns()
    turn = turns.expect("run_1")
    turns.come("run_1")
    turns.come("run_1")
    async with asyncio.timeout(1):
        await turn


async def test_a_run_that_is_forgotten_waits_no_more_and_may_be_expected_anew() -> None:
    turns = Turns()
    first = turns.expect("run_1")
    assert turns.expect("run_1") is first
    turns.forget("run_1")
    turns.come("run_1")
    assert not first.done()
    assert turns.expect("run_1") is not first


async def test_a_waiter_that_was_cancelled_is_fine() -> None:
    turns = Turns()
    turn = turns.expect("run_1")
    turn.cancel()
    turns.come("run_1")
    assert turns.waiting == []


async def test_requests_for_one_new_name_agree_on_its_id_while_they_are_under_way() -> None:
    looked_up: list[Name] = []

    async def find(name: Name) -> uuid.UUID | None:
        looked_up.append(name)
        await asyncio.sleep(0.01)
        return None

    names = SessionNames(find)

    async def accept() -> uuid.UUID:
        async with names.resolve((None, "daily")) as session_id:
            await asyncio.sleep(0.01)
            return session_id

    assert len(set(await asyncio.gather(*(accept() for _ in range(10))))) == 1
    assert len(looked_up) == 1
    await accept()
    assert len(looked_up) == 2, "afterwards the store is asked again"


async def test_a_lookup_that_fails_fails_all_who_wait_for_it_and_is_tried_anew_later() -> None:
    answers: list[Exception | uuid.UUID] = [RuntimeError("away"), uuid.uuid4()]

    async def find(name: Name) -> uuid.UUID | None:
        await asyncio.sleep(0)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    names = SessionNames(find)

    async def accept() -> uuid.UUID:
        async with names.resolve((None, "daily")) as session_id:
            return session_id

    results = await asyncio.gather(accept(), accept(), return_exceptions=True)
    assert [str(result) for result in results] == ["away", "away"]
    assert await accept()
