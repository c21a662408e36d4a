"""Locust: users who ask with streaming. Reports time to first token, inter-token latency, tokens a second and goodput
as requests of their own.

    locust -f loadtest/locustfile.py --headless --host http://127.0.0.1:8000 --users 8 --spawn-rate 4 --run-time 60s
    QUIRE_WORKLOAD=mixed QUIRE_SHAPE=ramp QUIRE_USERS=16 locust -f loadtest/locustfile.py --headless \
        --host http://127.0.0.1:8000 --stop-timeout 60 --report build/load.html

Environment variables say what is asked (QUIRE_WORKLOAD), when (QUIRE_SHAPE, QUIRE_STEPS, QUIRE_RATE) and how well it is
to be served (QUIRE_GOOD_*, QUIRE_SLO_*): docs/load-tests.md. The run exits 1 when a limit was missed.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from typing import Any

from gevent.pool import Group
from locust import HttpUser, LoadTestShape, between, events, task
from locust.env import Environment
from locust.event import EventHook
from locust.exception import StopUser
from locust.runners import WorkerRunner
from requests.exceptions import RequestException

try:
    from quire.loadtest.users import goals, setting, shapes, traffic
    from quire.loadtest.users.answer import Answer
    from quire.loadtest.users.asked import Asked
except ModuleNotFoundError as missing:
    sys.exit(f"the package {missing.name} is missing; run locust in a checkout of quire, or where it is installed")

WORKLOADS = traffic.shares("QUIRE_WORKLOAD", setting.text("QUIRE_WORKLOAD", "chat"))
SHAPE = setting.text("QUIRE_SHAPE") or ("steps" if setting.text("QUIRE_STEPS") else "")
if SHAPE and SHAPE not in (*shapes.SHAPES, "steps"):
    setting.refuse("QUIRE_SHAPE", SHAPE, f"one of {', '.join(shapes.SHAPES)}, steps")
PLAN = shapes.Plan(SHAPE, setting.count("QUIRE_USERS", 8),
                   setting.number("QUIRE_SECONDS", 1800 if SHAPE == "soak" else 60),
                   setting.counts("QUIRE_STEPS"), setting.number("QUIRE_STEP_S", 30))
RATE = setting.number("QUIRE_RATE", 1.0)  # of all users together, a second; of Poisson arrivals alone
IS_OPEN = SHAPE == "poisson"  # nobody waits for an answer before asking again
MAX_TOKENS, PROMPT_TOKENS = setting.count("QUIRE_MAX_TOKENS", 64), setting.count("QUIRE_PROMPT_TOKENS", 3000)
JUDGES = goals.judges_requests()

asked = EventHook()  # what became of a stream; fired with the fields of report.measured.Sent, `at` by the clock
_numbers = itertools.count()


class Asker(HttpUser):
    """Asks, reads the stream to its end, thinks for a moment, asks again; with Poisson arrivals it does not wait for
    the end."""

    def wait_time(self) -> float:
        thinks: Any = between(0.1, 1.0)
        return float(self.dialogue.rng.expovariate(RATE / PLAN.users) if IS_OPEN else thinks(self))

    def on_start(self) -> None:
        number = next(_numbers)
        keys, models = setting.names("VLLM_API_KEY"), setting.names("QUIRE_MODEL")
        self.headers = {"Authorization": f"Bearer {keys[number % len(keys)]}"} if keys else {}
        self.model = models[number % len(models)] if models else self._first_model()
        self.dialogue = traffic.Dialogue((id(self.environment.runner), number), MAX_TOKENS, PROMPT_TOKENS)
        self.asks = traffic.asking(self.dialogue, WORKLOADS)
        self.in_flight = Group()
        if IS_OPEN:
            self.wait()  # all would ask at once

    def on_stop(self) -> None:
        self.in_flight.join()

    def _first_model(self) -> str:
        reply = self.client.get("/v1/models", headers=self.headers)
        if not reply.ok:  # Locust counts it as a failure
            raise StopUser
        return str(reply.json()["data"][0]["id"])

    @task
    def ask(self) -> None:
        wanted = next(self.asks)
        if IS_OPEN:
            self.in_flight.spawn(self._send, wanted)
        else:
            self._send(wanted)

    def _send(self, wanted: Asked) -> None:
        is_stream = wanted.wants != "vector"
        answer = Answer(wanted.wants, functools.partial(_report, self.environment, "SSE"))
        with self.client.post(wanted.path, name=wanted.kind, json={"model": self.model, **wanted.body},
                              headers=self.headers, stream=is_stream, catch_response=True) as response:
            error = _read(response, answer) if is_stream else _vector_problem(response)
            response.request_meta["response_time"] = 1e3 * answer.seconds  # to the end, not to the headers
            if error:
                response.failure(error)
        if is_stream:
            self.dialogue.hear(answer.text)
            self._tell(answer.measured(error))

    def _tell(self, measured: dict[str, Any]) -> None:
        asked.fire(**measured)
        if JUDGES:
            _report(self.environment, "SLO", goals.GOODPUT, measured.get("ttft", 0.0), goals.unserved(measured))
        if measured.get("tpot"):  # Locust calls every value ms; this one is tokens a second
            _report(self.environment, "SSE", "tokens/s of an answer", 1e-3 / measured["tpot"])


def _report(environment: Environment, kind: str, name: str, seconds: float, error: Exception | None = None) -> None:
    environment.events.request.fire(request_type=kind, name=name, response_time=seconds * 1e3, response_length=0,
                                    exception=error, context={})


def _read(response: Any, answer: Answer) -> str | None:
    if response.status_code != 200:
        return f"status {response.status_code}" if response.status_code else str(response.error)
    try:
        return answer.read(response.iter_lines())
    except RequestException as error:
        return f"the stream broke off: {type(error).__name__}"


def _vector_problem(response: Any) -> str | None:
    if response.status_code != 200:
        return f"status {response.status_code}" if response.status_code else str(response.error)
    return None if response.json()["data"][0]["embedding"] else "the reply has no vector"


class Shape(LoadTestShape):
    """As many users as the plan says, if there is one."""

    abstract = not SHAPE

    def tick(self) -> tuple[int, float] | None:
        users = PLAN.at(self.get_run_time())
        return None if users is None else (users, users)


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
    path = environment.parsed_options.report if environment.parsed_options is not None else None
    if not path and setting.limit("QUIRE_SLO_DRIFT") is None:
        return
    from quire.loadtest.locust_report import LocustReport  # most runs do without
    reports.append(LocustReport(environment, path))
    asked.add_listener(reports[-1].take)


# The end

@events.quitting.add_listener
def judge(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):  # the master has the figures of all
        return
    problems = goals.missed(environment.stats, reports[0].sent if reports else ())
    for problem in problems:
        print(f"SLO missed: {problem}")
    if JUDGES:
        print(_goodput(environment))
    for report in reports:
        report.write({"workload": setting.text("QUIRE_WORKLOAD", "chat"), "limits": "; ".join(problems) or "kept"})
    environment.process_exit_code = 1 if problems else 0


def _goodput(environment: Environment) -> str:
    entry, total = environment.stats.get(goals.GOODPUT, "SLO"), environment.stats.total
    seconds = max((total.last_request_timestamp or 0.0) - total.start_time, 1e-3)
    good = entry.num_requests - entry.num_failures
    return f"goodput: {good / seconds:.2f} requests/s served well, {good} of {entry.num_requests}"
