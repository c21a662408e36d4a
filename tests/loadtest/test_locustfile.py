"""The Locust user in a real headless run (gevent patches the process it runs in, so it runs in one of its own)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "loadtest" / "locustfile.py"


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(json.dumps({"data": [{"id": "m"}]}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.path.startswith("/broken"):
            self.send_response(200)
            self.send_header("content-length", "999")
            self.end_headers()
            self.wfile.write(b"data: ")
            return
        deltas = [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}, {}]
        frames = [json.dumps({"choices": [{"delta": delta}]}) for delta in deltas]
        self._answer("".join(f"data: {frame}\n\n" for frame in [*frames, "[DONE]"]).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


BRIEFLY = ("--users", "2", "--spawn-rate", "2", "--run-time", "4s")  # Locust counts the time of its own start


def locust(host: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "locust", "-f", str(FILE), "--headless", "--host", host,
                           "--stop-timeout", "2", *(flags or BRIEFLY)],
                          env={"PATH": "/usr/bin:/bin", **environment}, text=True, capture_output=True, timeout=60)


def test_token_times_are_reported_and_a_kept_limit_passes(host):
    done = locust(host, QUIRE_SLO_TTFT_P95_MS="60000")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("time to first token", "inter-token latency", "tokens/s of an answer"):
        assert name in done.stderr


def test_a_missed_limit_fails_the_run_and_steps_have_a_report_by_the_number_of_users(host, tmp_path):
    report = tmp_path / "load.html"
    done = locust(host, "--report", str(report), QUIRE_STEPS="1 3", QUIRE_STEP_S="1.5", QUIRE_SLO_TTFT_P95_MS="0")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "SLO missed: p95 time to first token" in done.stdout
    page = report.read_text()
    rows = dict(re.findall(r'<th scope="row">(.+?)</th><td>(\d+)</td><td>0</td>', page))
    assert list(rows) == ["1 user", "3 users", "whole run"] and all(int(number) > 0 for number in rows.values())
    assert "p95 time to first token" in page and "Time to first token by load" in page


def test_a_stream_that_breaks_off_is_a_failure_and_in_the_report(host, tmp_path):
    report = tmp_path / "load.html"
    done = locust(f"{host}/broken", "--stop-timeout", "1", QUIRE_REPORT=str(report), QUIRE_STEPS="2",
                  QUIRE_STEP_S="1.5")
    assert done.returncode == 1
    assert re.search(r"no request was served\nSLO missed: 100.0% of \d+ requests failed", done.stdout)
    assert "Traceback" not in done.stderr
    assert "the stream broke off: ChunkedEncodingError" in report.read_text()


def test_a_report_that_cannot_be_written_is_refused_before_the_run(host):
    done = locust(host, "--report", "/nowhere/load.html")
    assert done.returncode == 2 and "/nowhere/load.html cannot be written: No such file" in done.stderr


def test_users_and_report_need_locust_and_the_standard_library_alone():
    code = ("import sys, quire.loadtest.locust_report\n"
            "from quire.loadtest.users import answer, goals, setting, shapes, traffic\nprint(*sys.modules)")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    ours = {name for name in said.split() if name.split(".")[0] == "quire"}
    allowed = ("quire.loadtest.locust_report", "quire.loadtest.report", "quire.loadtest.users")
    assert {name for name in ours if not name.startswith(allowed)} == {"quire", "quire.loadtest"}
    assert not {"msgspec", "aiohttp", "torch", "numpy"} & set(said.split())


def test_goodput_is_told_and_has_a_limit(host):
    limits = {"QUIRE_GOOD_TTFT_MS": "60000", "QUIRE_GOOD_TPOT_MS": "0", "QUIRE_SLO_GOODPUT_RATIO": "0.5"}
    done = locust(host, QUIRE_SHAPE="poisson", QUIRE_USERS="2", QUIRE_SECONDS="2", QUIRE_RATE="5", **limits)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "SLO missed: 0.0% of the requests were served well < QUIRE_SLO_GOODPUT_RATIO 0.5" in done.stdout
    assert re.search(r"goodput: 0.00 requests/s served well, 0 of \d+", done.stdout)


def test_a_setting_that_is_none_is_refused_before_the_run(host):
    done = locust(host, QUIRE_WORKLOAD="chat:0,tools")
    assert done.returncode == 2 and "QUIRE_WORKLOAD is 'chat:0,tools'; it must be mixed, or of chat" in done.stderr


@pytest.mark.slow
def test_a_run_of_several_processes_has_one_report(host, tmp_path):
    report = tmp_path / "load.html"
    done = locust(host, "--report", str(report), "--processes", "2", QUIRE_STEPS="2 4", QUIRE_STEP_S="6")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(re.findall(r'<th scope="row">(.+?)</th><td>(\d+)</td>', report.read_text()))
    assert list(rows) == ["2 users", "4 users", "whole run"] and all(int(number) > 0 for number in rows.values())


def test_a_server_that_is_not_there_fails_the_run():
    done = locust("http://127.0.0.1:9", "--stop-timeout", "1", QUIRE_MODEL="m", QUIRE_STEPS="2", QUIRE_STEP_S="1")
    assert done.returncode == 1
    assert "no request was served" in done.stdout
