"""`quire bench overhead`: throughput with everything on, beside everything off; prints one JSON line.

Two servers of the same model stay up, and the same load goes to one, then to the other, in turns (on off, off on, ...),
so that what else the machine does falls on both. On: keys with limits, deadlines, pings, access log, traces to a
collector, a scrape a second; with --tls HTTPS too. Where the machine does much else, CPU time is the figure to believe.
Flags that it does not know go to both servers. Exits 1 when a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from quire.app.command_parser import CommandParser
from quire.loadtest.arguments import count
from quire.loadtest.report.measured import Sent
from quire.loadtest.serve_client import send

MODEL = "smollm2-135m-instruct"
START_S = 120.0
PAUSE_S = 1.5  # after a round: its last traces and log lines are its own, not the next one's
PROMPT_TOKENS = 32
OFF = ["--disable-access-log", "--queue-timeout", "0", "--ttft-timeout", "0", "--request-timeout", "0",
       "--sse-ping-interval", "0"]


@dataclass
class Target:
    url: str
    key: str = ""
    scraper_key: str = ""
    scraped: bool = False  # once a second

    def session(self) -> aiohttp.ClientSession:
        insecure = ssl.create_default_context()  # the certificate is our own
        insecure.check_hostname, insecure.verify_mode = False, ssl.CERT_NONE
        connector = aiohttp.TCPConnector(limit=0, ssl=insecure)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return aiohttp.ClientSession(connector=connector, headers=headers, read_bufsize=1 << 20)


def _quire(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "quire", *arguments]


@contextmanager
def serving(flags: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[str]:
    """A server's URL, once it is ready. Its log goes to a file, as a service's would."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "QUIRE_", "OTEL_"))}
    with log.open("wb") as sink:
        process = subprocess.Popen(_quire("serve", MODEL, "--port", "0", *flags), stderr=sink, stdin=subprocess.DEVNULL,
                                   env=inherited | (environment or {}))
    try:
        yield _url_when_ready(process, log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _url_when_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event.get("event") == "ready":
                    return str(event["url"])
        time.sleep(0.1)
    raise SystemExit(f"the server did not start:\n{log.read_text()[-2000:]}")


@contextmanager
def swallowing_collector() -> Iterator[str]:
    """A collector's address that takes traces and forgets them."""
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
    finally:
        server.shutdown()
        server.server_close()


def create_key(file: Path, name: str, *flags: str) -> str:
    run = subprocess.run(_quire("keys", "create", name, "--file", str(file), *flags), check=True, capture_output=True,
                         text=True)
    return run.stdout.strip()


def certificate(directory: Path) -> list[str]:
    """Flags for HTTPS with a certificate made now."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                    "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    key.chmod(0o600)
    return ["--ssl-certfile", str(cert), "--ssl-keyfile", str(key)]


@dataclass
class Round:
    """What one round came to."""

    sent: list[Sent]
    seconds: float
    cpu_s: float  # of all the server's processes

    @property
    def num_tokens(self) -> int:
        return sum(each.num_tokens for each in self.sent)

    @property
    def rate(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def cpu_ms_per_token(self) -> float:
        return self.cpu_s * 1000 / max(1, self.num_tokens)


async def _round(target: Target, args: argparse.Namespace, seed: int) -> Round:
    rng, gate = random.Random(seed), asyncio.Semaphore(args.concurrency)
    prompts = [[rng.randrange(1000, 40000) for _ in range(PROMPT_TOKENS)] for _ in range(args.requests)]
    where = argparse.Namespace(url=target.url, model=MODEL)
    async with target.session() as session:
        async def one(prompt: list[int]) -> Sent:
            async with gate:
                return await send(session, where, prompt, args.tokens)

        async def scrape_on() -> None:
            while True:
                await asyncio.sleep(1.0)
                await _scrape(session, target)

        cpu_s, begin = _cpu_s(await _scrape(session, target)), time.perf_counter()
        scraping = asyncio.create_task(scrape_on()) if target.scraped else None
        sent = list(await asyncio.gather(*map(one, prompts)))
        seconds = time.perf_counter() - begin
        if scraping is not None:
            scraping.cancel()
        await asyncio.sleep(PAUSE_S)
        return Round(sent, seconds, _cpu_s(await _scrape(session, target)) - cpu_s)


async def _scrape(session: aiohttp.ClientSession, target: Target) -> str:
    headers = {"Authorization": f"Bearer {target.scraper_key}"} if target.scraper_key else {}
    async with session.get(f"{target.url}/metrics", headers=headers) as reply:
        reply.raise_for_status()
        return await reply.text()


def _cpu_s(metrics: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in metrics.splitlines()
               if line.startswith("quire:process_cpu_seconds_total{"))


def measure(on: Target, off: Target, args: argparse.Namespace) -> dict[str, Any]:
    targets = {"on": on, "off": off}
    rounds: dict[str, list[Round]] = {"on": [], "off": []}
    warm = [asyncio.run(_round(target, args, 0)) for target in targets.values()]
    for number in range(args.rounds):
        for name in ("on", "off") if number % 2 == 0 else ("off", "on"):
            done = asyncio.run(_round(targets[name], args, number + 1))
            rounds[name].append(done)
            print(f"round {number + 1} {name:3} {done.rate:8.1f} tokens/s {done.cpu_ms_per_token:8.2f} CPU ms a token",
                  file=sys.stderr)
    failed = [each.error for done in (*warm, *rounds["on"], *rounds["off"]) for each in done.sent if each.error]
    rates = {name: median(done.rate for done in rounds[name]) for name in rounds}
    cpu_ms = {name: median(done.cpu_ms_per_token for done in rounds[name]) for name in rounds}
    return {"rounds": args.rounds, "on_tok_s": round(rates["on"], 1), "off_tok_s": round(rates["off"], 1),
            "ratio": round(rates["on"] / rates["off"], 4), "on_cpu_ms_per_token": round(cpu_ms["on"], 3),
            "off_cpu_ms_per_token": round(cpu_ms["off"], 3), "cpu_ratio": round(cpu_ms["on"] / cpu_ms["off"], 4),
            "failed": len(failed), "first_error": failed[0] if failed else None}


def main(argv: list[str]) -> int:
    parser = CommandParser(prog="quire bench overhead", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=count, default=6, help="rounds on each server [%(default)s]")
    parser.add_argument("--requests", type=count, default=64, help="requests of a round [%(default)s]")
    parser.add_argument("--concurrency", type=count, default=16, help="of them at a time [%(default)s]")
    parser.add_argument("--tokens", type=count, default=32, help="output tokens of each [%(default)s]")
    parser.add_argument("--tls", action="store_true", help="HTTPS on the server with everything on (needs openssl)")
    args, flags = parser.parse_known_args(argv)
    if args.tls and shutil.which("openssl") is None:
        parser.error("--tls: the program openssl is missing")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        keys = directory / "keys.yaml"
        limits = ["--requests-per-minute", "1000000", "--tokens-per-minute", "1000000000", "--max-concurrent", "1000"]
        key, scraper_key = create_key(keys, "load", *limits), create_key(keys, "scraper", "--admin")
        collector = stack.enter_context(swallowing_collector())
        everything = ["--api-key-file", str(keys), "--host", "127.0.0.1", "--otlp-traces-endpoint", collector,
                      *(certificate(directory) if args.tls else []), *flags]
        on = stack.enter_context(serving(everything, directory / "on.log", {"OTEL_BSP_SCHEDULE_DELAY": "500"}))
        off = stack.enter_context(serving([*OFF, *flags], directory / "off.log"))
        result = measure(Target(on, key, scraper_key, scraped=True), Target(off), args)
    print(json.dumps(result), flush=True)
    return 1 if result["failed"] else 0
