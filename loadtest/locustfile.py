"""Locust: users who chat with streaming. Reports time to first token and inter-token latency as requests of their own.

    locust -f loadtest/locustfile.py --headless --host http://127.0.0.1:8000 --users 8 --spawn-rate 4 --run-time 60s
    QUIRE_STEPS="1 2 4 8" locust -f loadtest/locustfile.py --headless --host http://127.0.0.1:8000 --stop-timeout 60 \
        --report build/load.html

Environment: QUIRE_MODEL (the server's first model if unset), VLLM_API_KEY, QUIRE_MAX_TOKENS; QUIRE_STEPS, numbers of
users that are there one after the other, each for QUIRE_STEP_S seconds (30); QUIRE_REPORT, --report's file. The run
exits 1 when a limit given by QUIRE_SLO_TTFT_P95_MS, QUIRE_SLO_ITL_P95_MS or QUIRE_SLO_FAILURE_RATIO is missed, or
nothing was served.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import time
from typing import Any

from locust import HttpUser, LoadTestShape, between, events, task
from locust.env import Environment
from locust.event import EventHook
from locust.exception import StopUser
from locust.runners import WorkerRunner
from requests.exceptions import RequestException

CHATS = "/v1/chat/completions"  # also their name in the statistics, whatever path the host's address has
TTFT, ITL = "time to first token", "inter-token latency"
QUESTIONS = ("What is the capital of France?", "Write three sentences about the sea.",
             "Explain what a hash table is.", "Name five fruits.", "Give me a short poem on winter.")

asked = EventHook()  # what became of a chat; fired with the fields of report.measured.Sent, `at` by the clock


class Chatter(HttpUser):
    """Asks, reads the stream to its end, thinks for a moment, asks again."""

    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        key = os.environ.get("VLLM_API_KEY", "").split(",")[0]
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.model = os.environ.get("QUIRE_MODEL") or self._first_model()
        self.max_tokens = int(os.environ.get("QUIRE_MAX_TOKENS", "64"))

    def _first_model(self) -> str:
        reply = self.client.get("/v1/models", headers=self.headers)
        if not reply.ok:  # Locust counts it as a failure
            raise StopUser
        return str(reply.json()["data"][0]["id"])

    @task
    def chat(self) -> None:
        body = {"model": self.model, "stream": True, "stream_options": {"include_usage": True},
                "max_tokens": self.max_tokens, "messages": [{"role": "user", "content": random.choice(QUESTIONS)}]}
        answer = Answer(self.environment)
        with self.client.post(CHATS, name=CHATS, json=body, headers=self.headers, stream=True,
                              catch_response=True) as response:
            error = answer.read(response)
            if error:
                response.failure(error)
        asked.fire(**answer.measured(error))


class Answer:
    """Read from a stream, and when its tokens came."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._at, self._begin = time.time(), time.perf_counter()
        self._times: list[float] = []
        self._num_tokens: int | None = None

    def read(self, response: Any) -> str | None:
        """Reads to the end; what was wrong, if anything was."""
        if response.status_code != 200:
            return f"status {response.status_code}" if response.status_code else str(response.error)
        try:
            for line in response.iter_lines():
                if line == b"data: [DONE]":
                    return None if self._times else "the stream brought no token"
                if line.startswith(b"data: "):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        return str(chunk["error"])
                    self._take(chunk)
        except RequestException as error:
            return f"the stream broke off: {type(error).__name__}"
        return "the stream ended without [DONE]"

    def _take(self, chunk: dict[str, Any]) -> None:
        if chunk.get("usage"):
            self._num_tokens = int(chunk["usage"]["completion_tokens"])
        if any(choice["delta"].get("content") for choice in chunk["choices"]):
            now = time.perf_counter()
            last = self._times[-1] if self._times else None
            self._report(TTFT if last is None else ITL, now - (self._begin if last is None else last))
            self._times.append(now)

    def _report(self, name: str, seconds: float) -> None:
        self._environment.events.request.fire(request_type="SSE", name=name, response_time=seconds * 1e3,
                                              response_length=0, exception=None, context={})

    def measured(self, error: str | None) -> dict[str, Any]:
        if error:
            return {"at": self._at, "error": error}
        first, last, num_tokens = self._times[0], self._times[-1], self._num_tokens or len(self._times)
        return {"at": self._at, "ttft": first - self._begin, "num_tokens": num_tokens,
                "gaps": [after - before for before, after in itertools.pairwise(self._times)],
                "tpot": (last - first) / (num_tokens - 1) if num_tokens > 1 else None}


class Steps(LoadTestShape):
    """As many users as QUIRE_STEPS says, one number after the other."""

    abstract = not os.environ.get("QUIRE_STEPS")
    users = tuple(int(number) for number in os.environ.get("QUIRE_STEPS", "").replace(",", " ").split())
    step_s = float(os.environ.get("QUIRE_STEP_S", "30"))

    def tick(self) -> tuple[int, float] | None:
        place = int(self.get_run_time() / self.step_s)
        return (self.users[place], self.users[place]) if place < len(self.users) else None


# The report

reports: list[Any] = []  # the one that is wanted, if any


def _writable(text: str) -> str:
    """What is wrong with a file is told now, not after the test; for argparse. Locust sends flags on as texts alone."""
    try:
        with open(text, "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {error.strerror}") from None
    return text


@events.init_command_line_parser.add_listener
def add_flags(parser: Any) -> None:
    parser.add_argument("--report", type=_writable, env_var="QUIRE_REPORT", metavar="FILE",
                        help="write a report with plots here: latency by the number of users, percentiles over time")


@events.init.add_listener
def gather(environment: Environment, **_: Any) -> None:
    if environment.parsed_options is None or not environment.parsed_options.report:
        return
    try:
        # Without a report this file is all that is needed, as in Locust's image.
        from quire.loadtest.locust_report import LocustReport
    except ModuleNotFoundError as error:
        sys.exit(f"--report needs {error.name}; run locust in a checkout of quire, or where it is installed")
    reports.append(LocustReport(environment, environment.parsed_options.report))
    asked.add_listener(reports[-1].take)


# The end

def missed(environment: Environment) -> list[str]:
    """The limits that this run did not keep, in words."""
    stats = environment.stats
    found = [] if stats.get(TTFT, "SSE").num_requests else ["no token was served"]
    for name, variable in ((TTFT, "QUIRE_SLO_TTFT_P95_MS"), (ITL, "QUIRE_SLO_ITL_P95_MS")):
        limit, value = os.environ.get(variable), stats.get(name, "SSE").get_response_time_percentile(0.95)
        if limit and value > float(limit):
            found.append(f"p95 {name} {value:.0f} ms > {variable} {limit}")
    limit, chats = os.environ.get("QUIRE_SLO_FAILURE_RATIO", "0"), stats.get(CHATS, "POST")
    if chats.fail_ratio > float(limit):
        found.append(f"{chats.fail_ratio:.1%} of the chats failed > QUIRE_SLO_FAILURE_RATIO {limit}")
    return found


@events.quitting.add_listener
def judge(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):  # the master has the figures of all
        return
    problems = missed(environment)
    for problem in problems:
        print(f"SLO missed: {problem}")
    for report in reports:
        report.write({"limits": "; ".join(problems) or "kept"})
    environment.process_exit_code = 1 if problems else 0
