"""What a `kill -9` leaves, seen through the real server."""

import concurrent.futures
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from automagik.testing.servers import RunningServer
from automagik.testing.warm import WarmPython

AGENT = """
import asyncio
from pathlib import Path

from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel


async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    text = str(messages[-1].parts[-1].content)
    if text.startswith("sleep "):
        await asyncio.sleep(float(text.split()[1]))
    if text.startswith("linger ") and not (begun := Path(text.split()[1])).exists():
        begun.touch()
        await asyncio.sleep(60)
    return ModelResponse(parts=[TextPart(f"answer to {text}")])


async def stream(messages: list[ModelMessage], info: AgentInfo):
    yield (await answer(messages, info)).parts[0].content


agent = Agent(FunctionModel(answer, stream_function=stream), name="sleeper")
"""


@pytest.fixture
def server(tmp_path: Path, warm: WarmPython) -> RunningServer:
    agents = tmp_path / "data" / "agents"
    agents.mkdir(parents=True)
    (agents / "sleeper.py").write_text(AGENT)
    settings = {"AUTOMAGIK_MAX_CONCURRENT_BACKGROUND_RUNS": "2"}
    return RunningServer(tmp_path / "data", settings=settings, warm=warm)


@contextmanager
def client_of(server: RunningServer) -> Generator[httpx2.Client]:
    with httpx2.Client(base_url=f"{server.url}/api/v1", headers={"x-api-key": server.key}, timeout=30) as client:
        yield client


def ended(client: httpx2.Client, run_id: str) -> dict[str, object]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        run = client.get(f"/runs/{run_id}").json()
        if run["finished_at"] is not None:
            return run
        time.sleep(0.05)
    raise AssertionError(f"{run_id} did not end")


def test_after_a_kill_every_accepted_run_ends_visibly(server: RunningServer, tmp_path: Path) -> None:
    session = "0193d6a5-0000-7000-8000-000000000001"
    with server:
        with client_of(server) as client, concurrent.futures.ThreadPoolExecutor(2) as callers:

            def submit(text: str) -> str:
                return str(client.post("/agent/sleeper/run/async", json={"message_content": text}).json()["run_id"])

            begun = [tmp_path / str(number) for number in range(2)]
            running = [submit(f"linger {path}") for path in begun]
            queued = [submit(f"question {number}") for number in range(5)]
            waiting: list[dict[str, str]] = []
            for text, statuses in (("sleep 60", ["running"]), ("behind it", ["queued", "running"])):
                body = {"message_content": text, "session_id": session}
                callers.submit(client.post, "/agent/sleeper/run", json=body)
                deadline = time.monotonic() + 20
                while [run["status"] for run in waiting] != statuses:
                    assert time.monotonic() < deadline, waiting
                    time.sleep(0.05)
                    waiting = client.get("/runs", params={"session_id": session}).json()["data"]
            while not all(path.exists() for path in begun):
                time.sleep(0.05)
            server.kill()
        server.start()
        with client_of(server) as client:
            for run_id in running:
                run = ended(client, run_id)
                assert (run["outcome"], run["attempt"]) == ("completed", 2), "what had no tool called is done again"
            for run_id in queued:
                assert ended(client, run_id)["outcome"] == "completed", "what was accepted and not begun is carried out"
            for run in waiting:
                assert ended(client, run["run_id"])["outcome"] == "worker_lost", "nobody waits for these any more"
            for run_id in [*running, *queued, *(run["run_id"] for run in waiting)]:
                events = client.get(f"/runs/{run_id}/events").json()["data"]
                assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
                assert events[-1]["type"] == "run_finished"


def test_kill_under_load_loses_no_answer_that_was_given(server: RunningServer) -> None:
    answered: dict[str, str] = {}
    stop = threading.Event()

    def ask(client: httpx2.Client, number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            body = {"message_content": f"{number}.{turn}", "session_name": f"load {number}"}
            try:
                answer = client.post("/agent/sleeper/run", json=body)
            except httpx2.HTTPError:
                return
            if answer.status_code == 200:
                answered[answer.json()["run_id"]] = answer.json()["message"]

    with server:
        with client_of(server) as client, concurrent.futures.ThreadPoolExecutor(8) as callers:
            asked = [callers.submit(ask, client, number) for number in range(8)]
            deadline = time.monotonic() + 30
            while len(answered) <= 50 and time.monotonic() < deadline:
                time.sleep(0.02)
            server.kill()
            stop.set()
            for future in asked:
                future.result()
        assert len(answered) > 50
        server.start()
        with client_of(server) as client:
            for run_id, message in answered.items():
                assert client.get(f"/runs/{run_id}").json()["output"]["message"] == message
            for session in client.get("/sessions").json()["data"]:
                page = client.get(f"/sessions/{session['session_id']}/messages", params={"limit": 100}).json()
                roles = [message["role"] for message in page["data"]]
                assert roles == ["assistant", "user"] * (len(roles) // 2), "no half of a turn is stored"
            assert client.get("/runs", params={"status": "running"}).json()["data"] == []
