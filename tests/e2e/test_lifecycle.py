"""Start, reload, drain and end of the whole server, and who tells of it; what failures do to it is in tests/faults."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.server import ANY_WEIGHTS, KEY, Server, alive, serving, start, until

PROMPT = "The story of the sea begins"
REQUEST = {"model": "smollm2-135m-instruct", "prompt": PROMPT, "temperature": 0, "ignore_eos": True}
MODEL = "smollm2-135m-instruct"
BEAMS: dict[str, Any] = {"use_beam_search": True, "n": 3}


class Stream(threading.Thread):
    """A streaming completion read in the background."""

    def __init__(self, server: Server, max_tokens: int) -> None:
        super().__init__(daemon=True)
        self._client = server.client(timeout=60)
        self._max_tokens = max_tokens
        self.text = ""
        self.finish: str | None = None
        self.error: Exception | None = None
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            for chunk in self._client.completions.create(model=MODEL, prompt=PROMPT, temperature=0,
                                                         max_tokens=self._max_tokens, stream=True,
                                                         extra_body={"ignore_eos": True}):
                self.text += chunk.choices[0].text
                self.finish = chunk.choices[0].finish_reason
                self.begun.set()
        except Exception as error:
            self.error = error
        finally:
            self.begun.set()

    def result(self) -> str:
        self.join(60)
        assert not self.is_alive()
        return self.text


class Plain(threading.Thread):
    """A completion that is no stream, in the background."""

    def __init__(self, server: Server, max_tokens: int, **wish: Any) -> None:
        super().__init__(daemon=True)
        self._url, self._body = f"{server.url}/v1/completions", REQUEST | {"max_tokens": max_tokens} | wish
        self.reply: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        self.reply = httpx.post(self._url, json=self._body, headers={"authorization": f"Bearer {KEY}"}, timeout=60)

    def result(self) -> httpx.Response:
        self.join(60)
        assert self.reply is not None
        return self.reply


class Connection:
    """One HTTP connection that is kept, and what the server does to it."""

    def __init__(self, server: Server) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self._http = http.client.HTTPConnection(host, int(port), timeout=20)
        self._http.connect()
        self._socket = self._http.sock

    def get(self, path: str) -> http.client.HTTPResponse:
        self._http.request("GET", path, headers={"authorization": f"Bearer {KEY}"})
        reply = self._http.getresponse()
        reply.read()
        return reply

    def closed(self) -> bool:
        """Waits for the server to say something, or to close."""
        return self._socket.recv(1) == b""

    def close(self) -> None:
        self._http.close()


def running(server: Server, count: int) -> None:
    until(lambda: server.metric("vllm:num_requests_running") >= count, 30)


def cpu_s(server: Server) -> float:
    """Of all processes, so far."""
    ticks = 0
    for pid in [server.process.pid, *(pid for pids in server.pids().values() for pid in pids)]:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# Running


def test_workers_are_small_and_know_no_key_and_no_torch(server: Server) -> None:
    pids = server.pids()
    assert len(pids["workers"]) == 2
    for pid in [*pids["master"], *pids["workers"]]:
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
        resident = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line)
        assert int(resident.split()[1]) < 150 * 1024
    for pid in [*pids["engine"], *pids["master"], *pids["workers"]]:
        assert KEY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def test_probes_need_no_key_and_the_rest_does(server: Server) -> None:
    for path in ("/healthz", "/livez", "/readyz", "/health", "/ping"):
        assert httpx.get(server.url + path).status_code == 200
    for path in ("/startupz", "/metrics", "/nowhere"):
        assert httpx.get(server.url + path).status_code == 401
    assert server.get("/startupz").status_code == 200
    assert not [line for line in server.events("request") if line["path"] == "/readyz"]


@pytest.mark.slow
def test_idle_costs_no_cpu(server: Server) -> None:
    time.sleep(1)
    before = cpu_s(server)
    time.sleep(5)
    share = (cpu_s(server) - before) / 5
    assert share < 0.05, f"{share:.1%} of a core, for nothing"


# Reload, and what systemd hears


class Systemd:
    """Its end of the notification socket: reads at once, as the real one does."""

    def __init__(self, directory: str) -> None:
        self.path = f"{directory}/notify"
        self.heard: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while said := self._socket.recv(4096).decode():
            self.heard.append(dict(line.split("=", 1) for line in said.splitlines()))

    def first(self, name: str, after: int = 0) -> int:
        return next((i for i, said in enumerate(self.heard) if i >= after and name in said), -1)

    def count(self, name: str) -> int:
        return sum(name in said for said in self.heard)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", self.path)
        self._reader.join()
        self._socket.close()


@pytest.fixture(scope="module")
def supervised() -> Iterator[tuple[Server, Systemd, Path]]:
    """A server under systemd with a watchdog of 1 s, and with a configuration file."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "quire.yaml")
        config.write_text("log_level: info\n")
        systemd = Systemd(directory)
        environment = {"NOTIFY_SOCKET": systemd.path, "WATCHDOG_USEC": "1000000"}
        try:
            with serving("--config", str(config), environment=environment) as server:
                yield server, systemd, config
        finally:
            systemd.close()


def test_systemd_hears_of_the_load_then_ready_and_is_kept_fed(supervised: tuple[Server, Systemd, Path]) -> None:
    _, systemd, _ = supervised
    until(lambda: systemd.first("READY") >= 0)
    ready = systemd.first("READY")
    status = [said["STATUS"] for said in systemd.heard[:ready] if "STATUS" in said]
    assert any("loading weights" in line for line in status), status
    assert systemd.heard[ready]["STATUS"] == "serving"
    assert 0 <= systemd.first("EXTEND_TIMEOUT_USEC") < ready
    assert systemd.count("READY") == 1
    fed = systemd.count("WATCHDOG")
    until(lambda: systemd.count("WATCHDOG") >= fed + 3, 10)


def test_sighup_takes_the_new_log_level_and_leaves_streams_alone(supervised: tuple[Server, Systemd, Path]) -> None:
    server, systemd, config = supervised
    undisturbed = Stream(server, 40).result()
    until(lambda: len(server.events("request")) == 1)
    stream = Stream(server, 40)
    assert stream.begun.wait(60)
    pids = server.pids()
    config.write_text("log_level: warning\nmax_num_seqs: 3\n")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: systemd.first("RELOADING") > 0)
    reloading = systemd.first("RELOADING")
    assert int(systemd.heard[reloading]["MONOTONIC_USEC"]) <= time.monotonic() * 1e6
    until(lambda: systemd.first("READY", reloading) > reloading)
    assert stream.result() == undisturbed
    assert server.pids() == pids
    time.sleep(1.5)  # workers look once a second
    before = len(server.events("request"))
    Stream(server, 2).result()
    time.sleep(0.2)
    assert len(server.events("request")) == before, "request lines are below warning"
    config.write_text("log_level: info\nmax_num_seqs: 3\n")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: [event for event in server.events("reloading") if event["need_a_restart"] == ["--max-num-seqs"]])
    time.sleep(1.5)
    Stream(server, 2).result()
    until(lambda: len(server.events("request")) > before)


def test_a_broken_file_at_sighup_changes_nothing(supervised: tuple[Server, Systemd, Path]) -> None:
    server, systemd, config = supervised
    reloads = systemd.count("RELOADING")
    config.write_text("log_level: error\nno_such_thing: 1\n")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: server.events("reload refused, everything stays"))
    assert "no_such_thing" in str(server.events("reload refused, everything stays")[0]["problems"])
    until(lambda: systemd.count("RELOADING") == reloads + 1 and systemd.count("READY") == reloads + 2)
    time.sleep(1.5)
    before = len(server.events("request"))
    Stream(server, 2).result()
    until(lambda: len(server.events("request")) > before)
    config.write_text("log_level: info\n")


def test_systemd_hears_of_the_end_and_a_second_signal_is_now(supervised: tuple[Server, Systemd, Path]) -> None:
    server, systemd, _ = supervised
    stream = Stream(server, 1000)
    assert stream.begun.wait(60)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.events("draining"))
    server.process.send_signal(signal.SIGTERM)
    assert server.wait_exit(15) == 0
    stream.result()
    assert stream.error is not None
    stopping = systemd.heard[systemd.first("STOPPING")]
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 60e6, "the drain takes its time"


def test_a_terminal_that_is_closed_ends_the_server() -> None:
    """Its SIGHUP means that, not a reload."""
    terminal, ours = os.openpty()
    program = ("import fcntl, os, termios; os.setsid(); fcntl.ioctl(2, termios.TIOCSCTTY, 0); "
               "os.execvp(os.sys.executable, [os.sys.executable, '-m', 'quire', 'serve', '--port', '0'])")
    process = subprocess.Popen([sys.executable, "-c", program], stdin=ours, stdout=ours, stderr=ours)
    os.close(ours)
    said = b""
    while b"serving" not in said:
        said += os.read(terminal, 1024)
    os.close(terminal)
    assert process.wait(30) == 0


# Drain


def test_what_runs_outlives_a_killed_engine_and_sigterm_lets_the_rest_finish(server: Server) -> None:
    """What is expected comes from a server that nothing happens to."""
    undisturbed, beams = Stream(server, 24).result(), Plain(server, 24, **BEAMS).result().json()["choices"]
    with serving() as struck:
        search = Plain(struck, 24, **BEAMS)
        stream = Stream(struck, 24)
        until(lambda: len(stream.text) > len(undisturbed) / 4, 60)
        os.kill(struck.pids()["engine"][0], signal.SIGKILL)
        assert stream.result() == undisturbed
        assert stream.error is None
        assert search.result().json()["choices"] == beams
        until(lambda: len(struck.events("ready")) == 2, 60)
        assert sum(event["requests"] for event in struck.events("requests resubmitted")) == 2, "both were running"
        last = Stream(struck, 24)
        assert last.begun.wait(60)
        struck.process.send_signal(signal.SIGTERM)
        assert last.result() == undisturbed
        assert last.finish == "length"
        assert struck.wait_exit() == 0


def test_a_drain_says_so_serves_on_for_a_while_and_then_ends_what_is_left() -> None:
    with serving("--drain-delay", "3", "--shutdown-timeout", "1") as server:
        stream, plain = Stream(server, 1000), Plain(server, 1000)
        running(server, 2)
        idle, kept = Connection(server), Connection(server)
        assert idle.get("/livez").status == 200
        server.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503, 2)
        assert httpx.get(f"{server.url}/readyz").json() == {"status": "draining"}
        assert httpx.get(f"{server.url}/livez").status_code == 200
        served = kept.get("/v1/models")
        assert served.status == 200, "in the delay, new requests are served"
        assert served.headers["connection"] == "close", "and their connections are not kept"
        assert idle.closed()
        assert stream.is_alive(), "idle connections are closed while others are served"
        stream.result()
        assert isinstance(stream.error, openai.APIError)
        assert "shutting down" in str(stream.error)
        refused = plain.result()
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        assert server.wait_exit() == 0
        for connection in (idle, kept):
            connection.close()
        assert [event for event in server.events("request") if event["status"] == 503], "logged before the end"


# Ends that nobody asked for


def _loading(server: Server) -> None:
    until(lambda: server.pids()["engine"] and server.pids()["workers"], 30)


def _streaming(server: Server) -> None:
    server.wait_ready()
    assert Stream(server, 1000).begun.wait(60)


def _draining(server: Server) -> None:
    _streaming(server)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.events("draining"))


@pytest.mark.parametrize("bring_to", [_loading, pytest.param(_streaming, marks=pytest.mark.slow), _draining])
def test_nothing_outlives_a_killed_launcher(bring_to: Callable[[Server], None]) -> None:
    with tempfile.TemporaryDirectory() as run_dir:
        server = start("--run-dir", run_dir, environment={"VLLM_API_KEY": KEY})
        try:
            bring_to(server)
            pids = [pid for group in server.pids().values() for pid in group]
            assert len(pids) >= 3
        finally:
            server.process.kill()
        until(lambda: not any(map(alive, pids)), 5)
        server.wait_exit()


def test_without_gunicorns_master_the_server_ends_with_70() -> None:
    with serving(*ANY_WEIGHTS) as server:
        pids = server.pids()
        os.kill(pids["master"][0], signal.SIGKILL)
        assert server.wait_exit() == 70
        assert server.events("giving up")[0]["exit_code"] == 70
        until(lambda: not any(alive(pid) for group in pids.values() for pid in group), 5)


@pytest.mark.parametrize(("flags", "said"), [
    (["--dtype", "int3", "--block-size", "7"], ["--dtype", "--block-size"]),
    (["--host", "0.0.0.0"], ["--host", "VLLM_API_KEY"]),
    (["/nowhere/at/all"], ["/nowhere/at/all"]),
])
def test_wrong_settings_exit_2_and_say_why(flags: list[str], said: list[str]) -> None:
    server = start(*flags)
    assert server.wait_exit() == 2
    text = "".join(server.lines)
    assert all(word in text for word in said)


def test_a_taken_port_exits_2() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port: Any = taken.getsockname()[1]
        server = start("--port", str(port))
        assert server.wait_exit() == 2
        assert str(port) in "".join(server.lines)


def test_a_model_that_cannot_be_loaded_exits_3(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 64, "vocab_size": 128,
              "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
              "max_position_embeddings": 2048, "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    server = start("--model", str(tmp_path), "--skip-tokenizer-init")
    assert server.wait_exit() == 3
    assert server.events("giving up")[0]["exit_code"] == 3


@pytest.mark.slow
def test_a_log_that_nobody_reads_any_more_ends_nothing() -> None:
    with serving() as server:
        undisturbed = Stream(server, 20).result()
        assert server.process.stderr is not None
        os.dup2(os.open(os.devnull, os.O_RDONLY), server.process.stderr.fileno())  # the reader is gone
        assert Stream(server, 20).result() == undisturbed
        os.kill(server.pids()["engine"][0], signal.SIGKILL)
        assert Stream(server, 20).result() == undisturbed


@pytest.mark.slow
def test_a_log_that_nobody_empties_holds_no_request_up() -> None:
    with serving() as server:
        undisturbed = Stream(server, 20).result()
        assert server.process.stderr is not None
        never_filled = os.pipe()
        os.dup2(never_filled[0], server.process.stderr.fileno())  # that is what our thread reads from now on
        keep = os.open(f"/proc/{server.process.pid}/fd/2", os.O_RDONLY | os.O_NONBLOCK)  # so that this one stays open
        client = server.client()
        for _ in range(1000):
            client.models.list()
        assert server.get("/livez").status_code == 200
        assert Stream(server, 20).result() == undisturbed
        assert os.read(keep, 65536)
        assert server.metric("quire:log_lines_dropped_total") == 0, "they wait for room"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        for descriptor in (keep, *never_filled):
            os.close(descriptor)
