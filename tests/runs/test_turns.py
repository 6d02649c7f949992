import asyncio
import uuid

import pytest

from automagik.runs.names import Name, SessionNames
from automagik.runs.turns import SessionTurns, Turn

pytestmark = pytest.mark.anyio


async def test_turns_of_one_session_are_served_in_the_order_of_entering() -> None:
    turns = SessionTurns()
    served: list[int] = []

    async def serve(turn: Turn, number: int) -> None:
        await turn.wait()
        await asyncio.sleep(0)
        served.append(number)
        turn.leave()

    entered = [(turns.enter("session"), number) for number in range(20)]
    await asyncio.gather(*(serve(turn, number) for turn, number in reversed(entered)))
    assert served == list(range(20))
    assert len(turns) == 0


async def test_sessions_do_not_wait_for_each_other() -> None:
    turns = SessionTurns()
    turns.enter("one")
    async with asyncio.timeout(1):
        await turns.enter("other").wait()


async def test_a_place_given_up_in_the_middle_lets_the_others_go_on() -> None:
    turns = SessionTurns()
    first, second, third = (turns.enter("session") for _ in range(3))
    waiting = asyncio.create_task(third.wait())
    await asyncio.sleep(0)
    second.leave()
    second.leave()
    assert not waiting.done()
    first.leave()
    async with asyncio.timeout(1):
        await waiting


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
