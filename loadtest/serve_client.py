"""`quire bench serve`: a workload against a running OpenAI-compatible server, ours or another's; prints one JSON line
for each rate, and with --html writes a report with plots.

Streams /v1/completions with prompts given as token ids, from several client processes, so that the client is not what
is measured. ttft = first chunk with a token minus request sent; itl = gaps between later chunks; tpot = (last - first)
/ (tokens - 1). Several rates are measured one after the other, each on prompts of its own, so that no cache has them.
Exits 1 when a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import aiohttp

from quire.app.command_parser import CommandParser
from quire.app.peer import Lost, Peer, Unreachable, message_of, with_scheme
from quire.engine.errors import ConfigError
from quire.loadtest import workloads
from quire.loadtest.arguments import count, writable
from quire.loadtest.report.axis import shown
from quire.loadtest.report.measured import Load, Run, Sent
from quire.loadtest.report.page import html

START_AFTER_S = 0.2  # once all client processes are up, so that all begin together
UP_WITHIN_S = 120.0
TIMEOUT_S = 1800.0
_ADVICE = {"401": "give the key with --api-key, or as VLLM_API_KEY",
           "404": "--model is a name that the server gives at /v1/models, --url its address without a path"}


async def send(session: aiohttp.ClientSession, args: argparse.Namespace, ids: list[int], output_len: int) -> Sent:
    body = {"model": args.model, "prompt": ids, "max_tokens": output_len, "temperature": 1.0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}}
    begin, times, usage = time.perf_counter(), [], None
    try:
        async with session.post(f"{args.url}/v1/completions", json=body) as response:
            if response.status != 200:
                return Sent(error=f"{response.status} {_message_in(await response.text())[:200]}")
            async for line in response.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                now = time.perf_counter()
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    return Sent(error=str(chunk["error"])[:200])
                usage = chunk.get("usage") or usage
                if chunk["choices"]:
                    times.append(now)
    except aiohttp.ClientConnectorError as error:
        refused = isinstance(error.os_error, ConnectionRefusedError)  # asyncio's word for that is a tuple
        return Sent(error=f"{args.url} does not answer: {'Connection refused' if refused else error.strerror or error}")
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        return Sent(error=repr(error)[:200])
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # raised here, it would end the whole process
        return Sent(error=f"an event that cannot be read: {error!r}"[:200])
    if usage is None or not times:
        return Sent(error="the stream ended early: no token or no usage came")
    num_tokens = usage["completion_tokens"]
    return Sent(ttft=times[0] - begin, num_tokens=num_tokens, gaps=[b - a for a, b in itertools.pairwise(times)],
                tpot=(times[-1] - times[0]) / (num_tokens - 1) if num_tokens > 1 else None)


def _message_in(reply: str) -> str:
    try:
        return str(json.loads(reply)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return reply


Work = list[tuple[list[int], int, float]]  # prompt ids, output length, seconds after the start


def _client(args: argparse.Namespace, work: Work, up: Any, starts: Any, results: Any) -> None:
    """One client process: its share of the requests, each at its time after a start that all are told."""
    async def at(session: aiohttp.ClientSession, ids: list[int], output_len: int, offset_s: float) -> Sent:
        await asyncio.sleep(max(0.0, start + offset_s - time.time()))
        begin = time.time() - start
        sent = await send(session, args, ids, output_len)
        sent.at = begin
        return sent

    async def run() -> list[Sent]:
        headers = {"Authorization": f"Bearer {args.key}"} if args.key else {}
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers, timeout=timeout,
                                         read_bufsize=1 << 20) as session:
            return list(await asyncio.gather(*(at(session, *request) for request in work)))

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's, which ends us too
    up.release()
    start = starts.get()
    results.put(asyncio.run(run()))


def quantiles_ms(values: list[float]) -> dict[str, float | None]:
    """The middle and the worst hundredth, in milliseconds."""
    ordered = sorted(values)
    return {name: round(ordered[min(len(ordered) - 1, int(q * len(ordered)))] * 1e3, 2) if ordered else None
            for name, q in (("p50", 0.5), ("p99", 0.99))}


def summary(run: Run) -> dict[str, Any]:
    return {
        "requests": len(run.sent), "failed": run.num_failed,
        "first_error": next((sent.error for sent in run.sent if sent.error is not None), None),
        "s": round(run.seconds, 2), "out_tokens": run.num_tokens, "out_tok_s": round(run.output_per_s, 1),
        "req_s": round(run.answered_per_s, 2),
        "ttft_ms": quantiles_ms([sent.ttft for sent in run.good]),
        "itl_ms": quantiles_ms([gap for sent in run.good for gap in sent.gaps]),
        "tpot_ms": quantiles_ms([sent.tpot for sent in run.good if sent.tpot is not None]),
    }


def run(args: argparse.Namespace, rate: float, turn: int = 0) -> Run:
    """All requests at `rate` a second, 0 at once. Each `turn` has prompts of its own, of the same lengths."""
    ids, output_lens = workloads.prompts(args.workload, args.vocab, args.num_requests)
    if turn:
        ids = list(_others(ids, turn, workloads.top_id(args.vocab)))
    return measure(args, rate, ids, output_lens)


def measure(args: argparse.Namespace, rate: float, ids: list[list[int]], output_lens: list[int]) -> Run:
    """These requests, at `rate` a second, 0 at once. Of `args` counts where the server is, and `clients`."""
    rng, offset_s, offsets_s = random.Random(7), 0.0, []
    for _ in ids:
        offsets_s.append(offset_s)
        offset_s += rng.expovariate(rate) if rate else 0.0
    work: Work = list(zip(ids, output_lens, offsets_s))
    context = multiprocessing.get_context("spawn")
    queue, starts, up = context.Queue(), context.Queue(), context.Semaphore(0)
    clients = [context.Process(target=_client, args=(args, share, up, starts, queue), daemon=True)
               for share in (work[i::args.clients] for i in range(args.clients)) if share]
    for client in clients:
        client.start()
    if not all(up.acquire(timeout=UP_WITHIN_S) for _ in clients):
        raise ConfigError(f"--clients: {len(clients)} processes were not all up within {UP_WITHIN_S:g} s; take fewer")
    start = time.time() + START_AFTER_S
    for _ in clients:
        starts.put(start)
    results = [sent for _ in clients for sent in queue.get()]
    seconds = time.time() - start
    for client in clients:
        client.join()
    load = Load(f"{shown(rate)} requests/s", rate) if rate else Load("all at once")
    return Run(load, seconds, results)


def _others(prompts: list[list[int]], turn: int, top: int) -> Iterator[list[int]]:
    """Prompts that begin alike go on beginning alike."""
    lowest = workloads.LOWEST_ID
    shift = 7919 * turn
    for ids in prompts:
        yield [lowest + (id - lowest + shift) % (top - lowest) for id in ids]


def main(argv: list[str]) -> int:
    args = _parse(argv)
    runs: list[Run] = []
    summaries: list[dict[str, Any]] = []
    for turn, rate in enumerate(args.rate):
        runs.append(run(args, rate, turn))
        summaries.append({"workload": args.workload, "rate": rate or "all at once", **summary(runs[-1])})
        print(json.dumps(summaries[-1]), flush=True)
        if args.html is not None:  # after each, so that what was measured is there whatever comes
            args.html.write_text(html(runs, _about(args)), encoding="utf-8")
    failed = [each for each in summaries if each["failed"]]
    for result in failed:
        first = result["first_error"]
        print(f"quire bench serve: {result['failed']} of {result['requests']} requests failed; the first: "
              f"{first}{_advice(first[:4].strip())}", file=sys.stderr)
    return 1 if failed else 0


def _advice(status: str) -> str:
    return f" -> {_ADVICE[status]}" if status in _ADVICE else ""


def _about(args: argparse.Namespace) -> dict[str, str]:
    return {"model": args.model, "server": args.url, "workload": args.workload,
            "client processes": str(args.clients)}


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = CommandParser(prog="quire bench serve", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add_server_flags(parser)
    parser.add_argument("--workload", default="sharegpt", choices=list(workloads.load()), help="[%(default)s]")
    parser.add_argument("--num-requests", type=count, metavar="N", help="only the first N requests")
    parser.add_argument("--rate", type=float, default=[0.0], nargs="+", metavar="X",
                        help="Poisson arrivals a second; 0: all at once; several are measured in turn [0]")
    args = parser.parse_args(argv)
    for rate in args.rate:
        if not 0 <= rate < float("inf"):
            parser.error(f"--rate: {rate:g} is not 0 or a number of requests a second")
    settle_server(parser, args)
    return args


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:8000",
                        help="the server's address; http:// may be left out [%(default)s]")
    parser.add_argument("--model", help="the served model's name; the server's first if unset")
    parser.add_argument("--vocab", type=int, default=32000, metavar="N",
                        help="vocabulary size of the model [%(default)s]")
    parser.add_argument("--html", type=writable, metavar="FILE", help="write a report with plots here")
    parser.add_argument("--clients", type=count, default=4, metavar="N", help="client processes [%(default)s]")
    parser.add_argument("--api-key", "--key", dest="key", default=os.environ.get("VLLM_API_KEY", ""),
                        help="the key; also VLLM_API_KEY")


def settle_server(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Puts the whole address and a model's name into `args`."""
    args.url = with_scheme(args.url)
    if not args.url.startswith(("http://", "https://")):
        parser.error(f"--url: {args.url} does not begin with http:// or https://")
    try:
        server = Peer(args.url, args.key)
    except ValueError as error:
        parser.error(f"--url: {error}")
    args.url = server.address
    args.model = args.model or _first_model(server)


def _first_model(server: Peer) -> str:
    """Raises ConfigError where the server does not tell."""
    try:
        reply = server.get("/v1/models")
    except (Unreachable, Lost) as error:
        raise ConfigError(f"{server.address} does not answer: {error}") from None
    if reply.status != 200:
        raise ConfigError(f"{server.address}/v1/models: {message_of(reply)}{_advice(str(reply.status))}")
    return str(json.loads(reply.body)["data"][0]["id"])
