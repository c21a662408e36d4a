"""Locust: users who chat with streaming. Reports time to first token and inter-token latency as requests of their own.

    locust -f loadtest/locustfile.py --headless --host http://127.0.0.1:8000 --users 8 --spawn-rate 4 --run-time 60s

Environment: QUIRE_MODEL (the server's first model if unset), VLLM_API_KEY, QUIRE_MAX_TOKENS. The run exits 1 when a
limit given by QUIRE_SLO_TTFT_P95_MS, QUIRE_SLO_ITL_P95_MS or QUIRE_SLO_FAILURE_RATIO is missed, or nothing was served.
"""

from __future__ import annotations

import json
import os
import random
import time
from typing import Any

from locust import HttpUser, between, events, task
from locust.env import Environment

TTFT, ITL = "time to first token", "inter-token latency"
QUESTIONS = ("What is the capital of France?", "Write three sentences about the sea.",
             "Explain what a hash table is.", "Name five fruits.", "Give me a short poem on winter.")


class Chatter(HttpUser):
    """Asks, reads the stream to its end, thinks for a moment, asks again."""

    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        key = os.environ.get("VLLM_API_KEY", "").split(",")[0]
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.model = os.environ.get("QUIRE_MODEL") or self._first_model()
        self.max_tokens = int(os.environ.get("QUIRE_MAX_TOKENS", "64"))

    def _first_model(self) -> str:
        return str(self.client.get("/v1/models", headers=self.headers).json()["data"][0]["id"])

    @task
    def chat(self) -> None:
        body = {"model": self.model, "stream": True, "max_tokens": self.max_tokens,
                "messages": [{"role": "user", "content": random.choice(QUESTIONS)}]}
        begin = time.perf_counter()
        with self.client.post("/v1/chat/completions", json=body, headers=self.headers, stream=True,
                              catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return
            error = self._read(response, begin)
            if error:
                response.failure(error)

    def _read(self, response: Any, begin: float) -> str | None:
        """Reads the stream; what was wrong with it, if anything was."""
        last = None
        for line in response.iter_lines():
            if line == b"data: [DONE]":
                return None if last is not None else "the stream brought no token"
            if not line.startswith(b"data: "):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return str(chunk["error"])
            if any(choice["delta"].get("content") for choice in chunk["choices"]):
                now = time.perf_counter()
                self._report(TTFT if last is None else ITL, now - (begin if last is None else last))
                last = now
        return "the stream ended without [DONE]"

    def _report(self, name: str, seconds: float) -> None:
        self.environment.events.request.fire(request_type="SSE", name=name, response_time=seconds * 1e3,
                                             response_length=0, exception=None, context={})


def missed(environment: Environment) -> list[str]:
    """The limits that this run did not keep, in words."""
    stats = environment.stats
    found = [] if stats.get(TTFT, "SSE").num_requests else ["no token was served"]
    for name, variable in ((TTFT, "QUIRE_SLO_TTFT_P95_MS"), (ITL, "QUIRE_SLO_ITL_P95_MS")):
        limit, value = os.environ.get(variable), stats.get(name, "SSE").get_response_time_percentile(0.95)
        if limit and value > float(limit):
            found.append(f"p95 {name} {value:.0f} ms > {variable} {limit}")
    limit, chats = os.environ.get("QUIRE_SLO_FAILURE_RATIO", "0"), stats.get("/v1/chat/completions", "POST")
    if chats.fail_ratio > float(limit):
        found.append(f"{chats.fail_ratio:.1%} of the chats failed > QUIRE_SLO_FAILURE_RATIO {limit}")
    return found


@events.quitting.add_listener
def judge(environment: Environment, **_: Any) -> None:
    problems = missed(environment)
    for problem in problems:
        print(f"SLO missed: {problem}")
    environment.process_exit_code = 1 if problems else 0
