"""What Locust's users ask, when, what they make of the answers, and by which limits a run is judged. All of it pure."""

from __future__ import annotations

import json
from itertools import islice
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quire.app.schemas.chat import ChatRequest
from quire.app.schemas.completions import CompletionRequest
from quire.app.schemas.embeddings import EmbeddingRequest
from quire.loadtest.users import asked, goals, setting, shapes, traffic
from quire.loadtest.users.answer import ITL, TTFT, Answer

TYPES: dict[str, Any] = {asked.CHATS: ChatRequest, asked.COMPLETIONS: CompletionRequest,
                         asked.EMBEDDINGS: EmbeddingRequest}


def someone(seed: int = 0, max_tokens: int = 8) -> traffic.Dialogue:
    return traffic.Dialogue(seed, max_tokens, 100)


# What is asked


@pytest.mark.parametrize("kind", traffic.KINDS)
def test_each_kind_is_a_request_that_the_server_understands(kind: str) -> None:
    for wanted in islice(traffic.asking(someone(), {kind: 1.0}), 8):
        body = {"model": "m", **wanted.body}
        msgspec.json.decode(json.dumps(body), type=TYPES[wanted.path])
        assert wanted.body.get("stream") is (True if wanted.wants != "vector" else None)


def test_shares_are_kept_and_a_seed_asks_the_same_again() -> None:
    def kinds(seed: int) -> list[str]:
        return [wanted.kind for wanted in islice(traffic.asking(someone(seed), {"chat": 3.0, "tools": 1.0}), 400)]

    assert 240 < kinds(1).count("chat") < 360
    assert kinds(1) == kinds(1) != kinds(2)


def test_a_conversation_grows_by_what_was_said_and_begins_anew() -> None:
    user = someone()
    lengths = []
    for number, wanted in enumerate(islice(traffic.asking(user, {"turns": 1.0}), 14)):
        lengths.append(len(wanted.body["messages"]))
        user.hear(f"answer {number}")
    assert lengths == [1, 3, 5, 7, 9, 11, 1, 3, 5, 7, 9, 11, 1, 3]
    last = next(traffic.asking(user, {"turns": 1.0})).body["messages"]
    assert [message["role"] for message in last] == ["user", "assistant"] * 2 + ["user"]
    assert last[-2]["content"] == "answer 13"


def test_a_turn_without_an_answer_ends_its_conversation() -> None:
    asks = traffic.asking(someone(), {"turns": 1.0})
    assert [len(next(asks).body["messages"]) for _ in range(3)] == [1, 1, 1]


def test_users_share_the_beginnings_of_prompts() -> None:
    asked_of = [next(traffic.asking(someone(seed), {"prefix": 1.0})).body["messages"] for seed in range(40)]
    assert len({messages[0]["content"] for messages in asked_of}) == 4


def test_a_png_is_one() -> None:
    from io import BytesIO
    with Image.open(BytesIO(asked.png(b"\x10\x20\x30", 9))) as image:
        assert image.size == (9, 9) and image.convert("RGB").getpixel((8, 8)) == (0x10, 0x20, 0x30)


# When


@given(st.sampled_from([*shapes.SHAPES]), st.integers(1, 200), st.floats(1, 1e4), st.floats(0, 0.999))
def test_a_shape_has_one_to_all_users_and_ends(shape: str, users: int, seconds: float, part: float) -> None:
    plan = shapes.Plan(shape, users, seconds)
    now = plan.at(part * seconds)
    assert now is not None and 1 <= now <= users
    assert plan.at(seconds) is None


def test_shapes() -> None:
    ramp, spike = shapes.Plan("ramp", 4, 40.0), shapes.Plan("spike", 8, 10.0)
    assert [ramp.at(second) for second in (0, 10, 20, 30, 39.9)] == [1, 2, 3, 4, 4]
    assert [spike.at(second) for second in (0, 3.9, 4, 5.9, 6, 9.9)] == [2, 2, 8, 8, 2, 2]
    steps = shapes.Plan("steps", 1, 1.0, steps=[3, 5], step_s=2.0)
    assert [steps.at(second) for second in (0, 1.9, 2, 3.9, 4)] == [3, 3, 5, 5, None]


# What comes


def read(chunks: list[dict[str, Any] | str], wants: str = "text") -> tuple[Answer, str | None, list[tuple[str, float]]]:
    """One chunk a second."""
    told: list[tuple[str, float]] = []
    now = 0.0
    answer = Answer(wants, lambda name, seconds: told.append((name, seconds)), lambda: now)

    def lines() -> Any:
        nonlocal now
        for chunk in chunks:
            now += 1.0
            yield b"data: " + (chunk if isinstance(chunk, str) else json.dumps(chunk)).encode()
            yield b""

    return answer, answer.read(lines()), told


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"delta": fields, "finish_reason": finish}]}


def call(arguments: str, finish: str | None = None) -> dict[str, Any]:
    return delta(finish, tool_calls=[{"index": 0, "function": {"arguments": arguments}}])


USAGE = {"choices": [], "usage": {"completion_tokens": 4}}


def test_latencies_are_between_chunks_with_a_token_and_tokens_are_the_servers() -> None:
    answer, error, told = read([delta(role="assistant", content=""), delta(content="a"), delta(content="b"),
                                delta("stop"), USAGE, "[DONE]"])
    assert error is None and answer.text == "ab"
    assert told == [(TTFT, 2.0), (ITL, 1.0)]
    assert answer.measured(None) | {"at": 0} == {"at": 0, "ttft": 2.0, "num_tokens": 4, "gaps": [1.0], "tpot": 1 / 3}


def test_a_completions_text_is_read_too() -> None:
    answer, error, _ = read([{"choices": [{"text": "a", "finish_reason": None}]}, "[DONE]"])
    assert (error, answer.text) == (None, "a")


@pytest.mark.parametrize(("wants", "chunks", "problem"), [
    ("json", [delta(content='{"a": 1}'), delta("stop")], None),
    ("json", [delta(content='{"a": '), delta("stop")], "the reply is not JSON"),
    ("json", [delta(content="1"), delta("stop")], "the reply is no JSON object"),
    ("json", [delta(content='{"a": '), delta("length")], None),
    ("call", [call('{"city": '), call('"Rome"}', "tool_calls")], None),
    ("call", [call('{"city": ', "tool_calls")], "a call's arguments is not JSON"),
    ("call", [delta(content="hello"), delta("stop")], "a call's arguments is not JSON"),
    ("text", [], "the stream brought no token"),
    ("text", [{"error": {"message": "gone"}}], "{'message': 'gone'}")])
def test_an_answer_must_be_what_was_asked_for(wants: str, chunks: list[Any], problem: str | None) -> None:
    assert read([*chunks, "[DONE]"], wants)[1] == problem


def test_a_stream_must_have_an_end() -> None:
    assert read([delta(content="a")])[1] == "the stream ended without [DONE]"


# How well


class Entry(SimpleNamespace):
    def get_response_time_percentile(self, q: float) -> float:
        return float(self.p95)


class Stats:
    def __init__(self, num_requests: int = 10, num_failures: int = 0, p95: float = 100.0) -> None:
        self.entries = {("chat", "POST"): Entry(num_requests=num_requests, num_failures=num_failures),
                        ("/v1/models", "GET"): Entry(num_requests=9, num_failures=9)}
        self.p95, self.bad = p95, 0.3

    def get(self, name: str, kind: str) -> Entry:
        return Entry(p95=self.p95, fail_ratio=self.bad)


@pytest.mark.parametrize(("limits", "stats", "said"), [
    ({}, Stats(), []),
    ({}, Stats(num_failures=1), ["10.0% of the requests failed > QUIRE_SLO_FAILURE_RATIO 0"]),
    ({"QUIRE_SLO_FAILURE_RATIO": "0.1"}, Stats(num_failures=1), []),
    ({}, Stats(0, 0), ["no request was served"]),
    ({"QUIRE_SLO_TTFT_P95_MS": "99"}, Stats(), ["p95 time to first token 100 ms > QUIRE_SLO_TTFT_P95_MS 99"]),
    ({"QUIRE_SLO_ITL_P95_MS": "100"}, Stats(), []),
    ({"QUIRE_SLO_GOODPUT_RATIO": "0.8"}, Stats(), [
        "70.0% of the requests were served well < QUIRE_SLO_GOODPUT_RATIO 0.8"])])
def test_a_run_is_judged_by_its_limits(limits: dict[str, str], stats: Stats, said: list[str],
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in limits.items():
        monkeypatch.setenv(name, value)
    assert goals.missed(stats) == said


def sent(at: float, ttft: float, error: str | None = None) -> Any:
    return SimpleNamespace(at=at, ttft=ttft, error=error)


def test_a_soak_that_becomes_slower_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    steady = [sent(float(i), 0.1) for i in range(90)]
    slower = [sent(float(i), 0.1 + i / 300) for i in range(90)]
    assert goals.drift(steady) == 1.0 and goals.drift(slower) > 2 > 1.0 == goals.drift(slower[:30])
    assert goals.drift([*steady, *(sent(float(i), 9.0, "failed") for i in range(90))]) == 1.0
    monkeypatch.setenv("QUIRE_SLO_DRIFT", "1.2")
    assert goals.missed(Stats(), steady) == []
    (said,) = goals.missed(Stats(), slower)
    assert "QUIRE_SLO_DRIFT 1.2" in said


def test_a_request_is_served_well_within_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"ttft": 0.2, "tpot": 0.05}
    assert goals.unserved(measured) is None and not goals.judges_requests()
    monkeypatch.setenv("QUIRE_GOOD_TTFT_MS", "200")
    assert goals.unserved(measured) is None and goals.judges_requests()
    assert goals.unserved({"ttft": 0.2, "tpot": None}) is None
    monkeypatch.setenv("QUIRE_GOOD_TPOT_MS", "49")
    assert str(goals.unserved(measured)) == "beyond QUIRE_GOOD_TPOT_MS 49"
    assert str(goals.unserved({"error": "gone"})) == "it failed"


@pytest.mark.parametrize(("read_setting", "value"), [
    (setting.number, "0"), (setting.number, "inf"), (setting.number, "x"), (setting.count, "1.5"),
    (setting.limit, "-1"), (setting.limit, "nan"), (setting.counts, "1 -2")])
def test_a_setting_that_is_none_ends_the_program_by_its_name(read_setting: Any, value: str, capsys: Any,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_X", value)
    with pytest.raises(SystemExit) as ended:
        read_setting("QUIRE_X", *([1] if read_setting in (setting.number, setting.count) else []))
    assert ended.value.code == 2 and f"QUIRE_X is '{value}'" in capsys.readouterr().err
