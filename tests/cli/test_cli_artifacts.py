"""`artifacts get`, `db prune`, and what `doctor` says of the artefact store."""

import hashlib
import json
from pathlib import Path

import pytest
from cli_harness import Answer, Command, StubApi, problem

BODY = "the bytes of a document"
DIGEST = hashlib.sha256(BODY.encode()).hexdigest()
PATH = f"/api/v1/artifacts/{DIGEST}"
TYPED = {"content-type": "text/plain"}


def test_an_artifact_comes_into_a_file(command: Command, api: StubApi, tmp_path: Path) -> None:
    api.on("GET", PATH, Answer(BODY, headers=TYPED))
    target = tmp_path / "document.txt"
    target.write_text("an earlier one")
    done = command("artifacts", "get", DIGEST, "-o", str(target), "--json")
    assert done.code == 0, done
    assert target.read_text() == BODY
    assert json.loads(done.out) == {
        "digest": DIGEST,
        "size": len(BODY),
        "media_type": "text/plain",
        "file": str(target),
    }
    assert command("artifacts", "get", DIGEST, "-o", "-").out == BODY
    assert f"{len(BODY)} bytes of text/plain" in command("artifacts", "get", DIGEST, "-o", str(target)).err


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        (Answer("other bytes", headers=TYPED), 1, "not the artefact's"),
        (Answer(BODY, headers=TYPED, breaks=True), 3, "broke off"),
        (problem(404, "artifact_not_found", "There is no artifact."), 5, "There is no artifact."),
        (problem(403, "missing_scope", "This key lacks the scope."), 4, "lacks the scope"),
    ],
)
def test_what_does_not_come_whole_leaves_the_file_as_it_was(
    command: Command, api: StubApi, tmp_path: Path, answer: Answer, code: int, told: str
) -> None:
    api.on("GET", PATH, answer)
    target = tmp_path / "document.txt"
    target.write_text("an earlier one")
    done = command("artifacts", "get", DIGEST, "-o", str(target))
    assert done.code == code, done
    assert told in done.err
    assert target.read_text() == "an earlier one"
    assert [path.name for path in tmp_path.iterdir() if "document" in path.name] == ["document.txt"]


def test_a_place_that_cannot_be_written_to_is_told(command: Command, api: StubApi, tmp_path: Path) -> None:
    api.on("GET", PATH, Answer(BODY, headers=TYPED))
    done = command("artifacts", "get", DIGEST, "-o", str(tmp_path / "nowhere" / "document.txt"))
    assert (done.code, "can't be written to" in done.err) == (2, True)
    assert command("artifacts", "get", DIGEST, "-o", "-", "--json").code == 2
    assert command("artifacts", "get", DIGEST).code == 2


def test_pruning_says_what_goes(command: Command) -> None:
    done = command("db", "prune", "--older-than", "30d", "--dry-run", "--json")
    assert done.code == 0, done
    counts = json.loads(done.out)
    assert counts.pop("dry_run") is True
    assert counts["runs"] == counts["artifacts"] == 0
    done = command("db", "prune", "--older-than", "2w")
    assert (done.code, done.err) == (0, "Deleted: nothing.\n")
    done = command("db", "prune", "--older-than", "48h", "--sessions")
    assert (done.code, "--yes" in done.err) == (2, True)
    assert command("db", "prune", "--older-than", "48h", "--sessions", "--yes", "--json").code == 0


@pytest.mark.parametrize("age", ["30", "d", "23h", "0d", "-5d", "1y", "30 d", "٣d", "9999999d", "999999d"])
def test_an_age_that_is_none_is_refused(command: Command, age: str) -> None:
    done = command("db", "prune", f"--older-than={age}")
    assert done.code == 2, done
    assert "30d, 12w or 48h" in done.err
    assert not command.data_dir.exists()


def test_the_doctor_writes_and_reads_an_artifact(command: Command, tmp_path: Path) -> None:
    def finding(**environment: str) -> dict[str, str]:
        lines = command("doctor", "--json", **environment).lines
        return next(line for line in lines if line["name"] == "artefacts")

    shared = tmp_path / "shared"
    assert finding(AUTOMAGIK_ARTIFACTS_URL=shared.as_uri())["status"] == "ok"
    assert [path for path in shared.rglob("*") if path.is_file()] == []
    blocked = tmp_path / "file"
    blocked.write_text("")
    told = finding(AUTOMAGIK_ARTIFACTS_URL=(blocked / "below").as_uri())
    assert (told["status"], "can't be used" in told["detail"]) == ("fail", True)
    told = finding(AUTOMAGIK_ARTIFACTS_URL="ftp://host/folder")
    assert (told["status"], "AUTOMAGIK_ARTIFACTS_URL" in told["detail"]) == ("fail", True)
