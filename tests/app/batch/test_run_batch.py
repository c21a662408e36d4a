"""`quire run-batch` against a server whose answers are known: every line of the input gets one line of the output."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from quire.app.batch import sending
from quire.app.batch.output_file import OutputFile
from quire.app.cli import main
from tests.app.batch.scripted_server import Script, answer, scripted

KEY = "a-key-that-is-long-enough"


def request(custom_id: Any, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": {"prompt": custom_id, **body}}


class Run:
    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.input, self.output = directory / "in.jsonl", directory / "out.jsonl"
        self._capsys = capsys

    def write(self, *lines: dict[str, Any] | str) -> None:
        self.input.write_text("".join(
            (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))

    def __call__(self, url: str, *flags: str) -> tuple[int, str]:
        """The exit code, and what was told."""
        code = main(["run-batch", "-i", str(self.input), "-o", str(self.output), "--url", url, *flags])
        return code, self._capsys.readouterr().err

    @property
    def results(self) -> dict[str | None, Any]:
        lines = [json.loads(line) for line in self.output.read_text().splitlines()]
        assert len({line["id"] for line in lines}) == len(lines)
        assert len({line["custom_id"] for line in lines}) == len(lines), "a line was answered twice"
        return {line["custom_id"]: line for line in lines}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(tmp_path, capsys)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(sending, "LAST_DELAY_S", 0.02)
    monkeypatch.setenv("VLLM_API_KEY", KEY)


def test_every_line_has_one_result_and_at_most_so_many_are_asked_at_once(run: Run) -> None:
    run.write(*(request(f"c{i}") for i in range(40)))
    full = threading.Barrier(4)

    def together(body: dict[str, Any], _: int) -> tuple[int, dict[str, str], Any]:
        full.wait(10)  # broken unless four are asked at once
        return answer(body, 0)

    with scripted(together) as (url, seen):
        code, told = run(url, "--concurrency", "4")
    assert (code, seen.most_at_once, seen.keys) == (0, 4, {f"Bearer {KEY}"})
    assert set(run.results) == {f"c{i}" for i in range(40)}
    result = run.results["c7"]
    assert result["id"].startswith("batch_req_") and result["error"] is None
    assert (result["response"]["status_code"], result["response"]["request_id"]) == (200, "r1")
    assert result["response"]["body"]["echo"] == {"prompt": "c7"}
    assert told.endswith("tokens in, 80 out" + told[told.rindex(" ("):]) and "40 of 40 lines have a result" in told


BAD = {
    "nonsense": "the line is not JSON",
    "[1]": "the line is not a JSON object",
    json.dumps({**request("x"), "custom_id": 5}): "custom_id must be text",
    json.dumps({"method": "POST"}): "custom_id must be text",
    json.dumps({**request("get"), "method": "GET"}): 'method must be "POST", got "GET"',
    json.dumps({**request("host"), "url": "https://h/v1/completions"}): "url must be a path of the server",
    json.dumps({**request("admin"), "url": "/admin/reload"}): "url must be a path of the server",
    json.dumps({**request("split"), "url": "/v1/x HTTP/1.1\r\nx:"}): "url must be a path of the server",
    json.dumps({**request("list"), "body": []}): "body must be a JSON object, got []",
    json.dumps({"custom_id": "none", "method": "POST", "url": "/x"}): "body must be a JSON object, got none",
    json.dumps(request("stream", stream=True)): "body.stream must be false",
}


def test_bad_lines_are_told_by_number_and_stop_nothing(run: Run) -> None:
    run.write(request("first"), "", *BAD, request("last", stream=False))
    with scripted() as (url, seen):
        assert run(url)[0] == 1
        text = run.output.read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        errors = {line["error"]["line"]: line["error"] for line in lines if line["error"]}
        for number, expected in enumerate(BAD.values(), 3):
            assert errors[number]["code"] == "invalid_line"
            assert errors[number]["message"].startswith(f"line {number}: {expected}"), errors[number]
        assert sum(line["response"] is not None for line in lines) == 2 == len(seen.bodies)
        code, told = run(url)
        assert (code, len(seen.bodies)) == (1, 2)
        assert "nothing left to do" in told
        assert run.output.read_text() == text


def test_a_line_of_any_length_is_read_and_one_beyond_the_limit_is_told(run: Run,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.app.batch.input_file.MOST_LINE_BYTES", 1000)
    monkeypatch.setattr("quire.app.batch.input_file._PIECE", 100)
    run.write(request("a", x="y" * 800), request("b", x="y" * 5000), request("c"))
    with scripted() as (url, _):
        assert run(url)[0] == 1
    results = run.results
    assert results["a"]["response"] and results["c"]["response"]
    assert results[None]["error"] == {"code": "invalid_line", "line": 2,
                                      "message": "line 2: the line is longer than 1000 bytes"}


def test_custom_ids_that_stand_twice_are_refused_before_anything_is_asked(run: Run) -> None:
    run.write(request("a"), request("b"), "nonsense", request("a"), {**request("b"), "method": "GET"}, request("a"))
    with scripted() as (url, seen):
        code, told = run(url)
    assert (code, seen.bodies) == (2, [])
    assert "custom_id 'a' is on lines 1, 4, 6;" in told and "custom_id 'b' is on lines 2, 5;" in told


@pytest.mark.parametrize("torn", ["", '{"id":"batch_req_1","custom_id":"c1","resp', "\0\0\0\0", "x" * 200_000])
def test_a_second_run_asks_for_what_has_no_result_and_mends_a_torn_line(run: Run, torn: str) -> None:
    run.write(*(request(f"c{i}") for i in range(3)))
    with scripted() as (url, seen):
        assert run(url)[0] == 0
        kept = run.output.read_text().splitlines(keepends=True)
        first = next(line for line in kept if '"c0"' in line)
        run.output.write_text(first + torn)
        assert run(url)[0] == 0
        assert sorted(body["prompt"] for body in seen.bodies) == ["c0", "c1", "c1", "c2", "c2"]
    assert set(run.results) == {"c0", "c1", "c2"}
    assert run.output.read_text().startswith(first)


def test_failed_lines_stay_as_they_are_unless_they_are_to_be_retried(run: Run) -> None:
    run.write(request("good"), request("bad"))
    answers: Script = lambda body, before: answer(body, 0) if body["prompt"] == "good" or before else (  # noqa: E731
        400, {}, {"error": {"message": "no"}})
    with scripted(answers) as (url, seen):
        assert run(url)[0] == 1
        assert run.results["bad"]["response"]["status_code"] == 400
        assert run.results["bad"]["response"]["body"] == {"error": {"message": "no"}}
        good = run.results["good"]
        assert (run(url)[0], len(seen.bodies)) == (1, 2)
        assert (run(url, "--retry-failed")[0], len(seen.bodies)) == (0, 3)
    assert run.results["bad"]["response"]["status_code"] == 200 and run.results["good"] == good


@pytest.mark.parametrize(("line", "said"), [
    ('{"custom_id": "other", "response": null, "error": null}', "line 1: the input has no custom_id 'other'"),
    ("a diary", "line 1 is not a line of this program's"), ('{"custom_id": 1}', "line 1 is not a line")])
def test_a_file_that_is_not_this_inputs_is_left_alone(run: Run, line: str, said: str) -> None:
    run.write(request("a"))
    run.output.write_text(line + "\n")
    with scripted() as (url, seen):
        code, told = run(url)
    assert (code, seen.bodies, run.output.read_text()) == (2, [], line + "\n")
    assert said in told


def test_the_input_is_not_written_over_and_two_runs_do_not_share_an_output(run: Run) -> None:
    run.write(request("a"))
    run.output.hardlink_to(run.input)
    code, told = run("http://127.0.0.1:1")
    assert code == 2 and "is the input too" in told
    run.output.unlink()
    first = OutputFile(str(run.output))
    code, told = run("http://127.0.0.1:1")
    first.close()
    assert code == 2 and "another run is writing to it" in told


def test_a_refusal_for_load_is_no_result(run: Run) -> None:
    run.write(request("a"), request("b"))
    statuses = [429, 503, 503]
    began: Script = lambda body, before: answer(body, 0) if before == 3 else (  # noqa: E731
        statuses[before], {"retry-after": "0.1"} if before else {}, {"error": {"message": "full"}})
    with scripted(began) as (url, seen):
        assert run(url)[0] == 0
        assert len(seen.bodies) == 8
    assert all(result["response"]["status_code"] == 200 for result in run.results.values())


def test_a_request_that_breaks_connections_is_given_up_and_the_rest_goes_on(run: Run) -> None:
    run.write(request("once"), request("always"), request("never"))
    breaking: Script = lambda body, before: None if body["prompt"] == "always" or (  # noqa: E731
        body["prompt"] == "once" and not before) else answer(body, 0)
    with scripted(breaking) as (url, seen):
        assert run(url, "--concurrency", "1")[0] == 1
        num_asked = sum(body["prompt"] == "always" for body in seen.bodies)
        assert num_asked == sending.MOST_LOSSES + 1  # the first on a kept connection, which may have been idle
    assert run.results["always"]["response"] is None
    assert run.results["always"]["error"]["code"] == "connection_lost"
    assert run.results["once"]["response"] and run.results["never"]["response"]


@pytest.mark.parametrize(("script", "said"), [
    (lambda body, before: (503, {}, {"error": {"message": "loading"}}),
     "nothing got through for 0 s (--patience); last: loading"),
    (lambda body, before: (401, {}, {"error": {"message": "who are you?"}}), "stopped, who are you? -> the key")])
def test_what_is_the_servers_fault_leaves_no_line(run: Run, script: Script, said: str) -> None:
    run.write(request("a"), request("b"))
    with scripted(script) as (url, _):
        code, told = run(url, "--patience", "0")
    assert (code, run.output.read_text()) == (1, "")
    assert said in told and "0 of 2 lines have a result" in told


def test_nobody_there_is_told_at_once(run: Run) -> None:
    run.write(request("a"))
    code, told = run("127.0.0.1:1")
    assert code == 1 and "http://127.0.0.1:1 does not answer: Connection refused" in told


@pytest.mark.parametrize(("raw", "status", "told"), [
    (b"<html>", 502, "connection_lost"), (b"oops", 200, "unreadable_reply")])
def test_replies_that_are_no_json_are_told(run: Run, raw: bytes, status: int, told: str) -> None:
    run.write(request("a"))
    with scripted(lambda body, before: (status, {}, raw)) as (url, _):
        assert run(url)[0] == 1
    assert run.results["a"]["error"]["code"] == told


def test_a_refusal_that_is_no_json_is_kept_as_text(run: Run) -> None:
    run.write(request("a"))
    with scripted(lambda body, before: (413, {}, b"too\nlong")) as (url, _):
        assert run(url)[0] == 1
    assert run.results["a"]["response"]["body"] == "too\nlong"


def test_the_input_may_be_standard_input_and_the_output_a_pipe(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write(request("a"), request("b"))
    with scripted() as (url, _), open(run.input) as standard_input:
        monkeypatch.setattr("sys.stdin", standard_input)
        reader, writer = os.pipe()
        with open(reader) as end:
            assert main(["run-batch", "-i", "-", "-o", f"/dev/fd/{writer}", "--url", url]) == 0
            os.close(writer)
            assert {json.loads(line)["custom_id"] for line in end} == {"a", "b"}


def test_a_full_disk_stops_the_run_and_says_so(run: Run) -> None:
    run.write(request("a"))
    run.output = Path("/dev/full")
    with scripted() as (url, _):
        code, told = run(url)
    assert code == 1 and "stopped, the output cannot be written: No space left on device: 0 of 1 lines" in told


@pytest.mark.parametrize(("flags", "said"), [
    (["--url", "h:1", "--max-model-len", "5"], "--max-model-len: there is no setting"),
    ([], "give --url, where a server runs, or --model"), (["--url", "ftp://h"], "--url: ftp://h does not begin"),
    (["--url", "h", "--concurrency", "0"], "--concurrency: 0 is not in"),
    (["--model", "m", "--max-model-le", "5"], "did you mean '--max-model-len'")])
def test_flags_that_make_no_sense_are_refused_by_name(run: Run, capsys: pytest.CaptureFixture[str], flags: list[str],
                                                      said: str) -> None:
    run.write(request("a"))
    try:
        code = main(["run-batch", "-i", str(run.input), "-o", str(run.output), *flags])
    except SystemExit as left:
        code = int(left.code or 0)
    assert code == 2 and said in capsys.readouterr().err
