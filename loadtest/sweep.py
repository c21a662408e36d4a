"""`quire bench sweep`: up to which rate a server serves its requests well, and what goes on far beyond it.

Offers requests at random times (Poisson arrivals) at one rate after the other, each for --seconds: twice the last one
as long as the share --served is served well, then --refine times the middle between the last that was and the first
that was not. Served well: without an error, the first token within --ttft-ms and each later one within --tpot-ms, as a
mean. Goodput is how many such requests there were, by the time from the first that was sent to the last that was sent
or, if that is later, to the end of the last that was served well.

Prints a line for each rate, then the saturation point: the highest rate that was served well. With --overload 5 it then
offers, --rounds times, that rate, twice and five times it in turns, since machines change their pace, and exits 1
unless at five times goodput stays within --loss of the better of the others. What the server refuses (429, 503) has no
latency.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quire.app.command_parser import CommandParser
from quire.loadtest import workloads
from quire.loadtest.arguments import count, positive, share
from quire.loadtest.report.axis import shown
from quire.loadtest.report.measured import Run, Sent, percentile
from quire.loadtest.report.page import html
from quire.loadtest.serve_client import add_server_flags, measure, settle_server

_LEAST_REQUESTS = 8  # at a rate
_MOST_RATES = 16
_BEYOND = 2  # times the saturation point: what is offered there limits no server
_REFUSED = ("429 ", "503 ")  # how the errors of refused requests begin


@dataclass(frozen=True)
class Goal:
    ttft_s: float
    tpot_s: float

    def is_met(self, sent: Sent) -> bool:
        return (sent.error is None and sent.ttft <= self.ttft_s
                and (sent.tpot is None or sent.tpot <= self.tpot_s))


@dataclass(frozen=True)
class Level:
    """What came of one rate."""

    rate: float
    run: Run
    goal: Goal

    @property
    def good(self) -> list[Sent]:
        return [sent for sent in self.run.sent if self.goal.is_met(sent)]

    @property
    def share(self) -> float:
        return len(self.good) / len(self.run.sent)

    @property
    def goodput(self) -> float:
        """Requests a second."""
        if not self.good:
            return 0.0
        times = [sent.at for sent in self.run.sent]
        end = max([*times, *(sent.at + sent.total for sent in self.good)])
        return len(self.good) / max(end - min(times), 1e-3)

    @property
    def num_refused(self) -> int:
        return sum(sent.error is not None and sent.error.startswith(_REFUSED) for sent in self.run.sent)

    @property
    def num_broken(self) -> int:
        """That failed otherwise."""
        return self.run.num_failed - self.num_refused

    def summary(self) -> dict[str, Any]:
        ttfts = [1e3 * sent.ttft for sent in self.run.good]
        tpots = [1e3 * sent.tpot for sent in self.run.good if sent.tpot is not None]
        return {"rate": round(self.rate, 3), "requests": len(self.run.sent), "refused": self.num_refused,
                "failed": self.num_broken, "served_well": round(self.share, 3), "goodput": round(self.goodput, 3),
                "out_tok_s": round(self.run.output_per_s, 1),
                **{f"{name}_ms": {kind: round(percentile(values, q), 1) for kind, q in (("p50", 0.5), ("p99", 0.99))}
                   if values else None for name, values in (("ttft", ttfts), ("tpot", tpots))}}


def saturate(offer: Callable[[float], Level], first_rate: float, *, served: float, refine: int) -> list[Level]:
    """Each rate that was offered, in order. At each next one something is known that was not before."""
    levels = [offer(first_rate)]
    while levels[-1].share >= served and len(levels) < _MOST_RATES:
        levels.append(offer(2 * levels[-1].rate))
    well = max((level.rate for level in levels if level.share >= served), default=0.0)
    beyond = min((level.rate for level in levels if level.share < served), default=0.0)
    for _ in range(refine if well and beyond else 0):
        levels.append(offer((well + beyond) / 2))
        if levels[-1].share >= served:
            well = levels[-1].rate
        else:
            beyond = levels[-1].rate
    return levels


def saturation(levels: list[Level], served: float) -> float:
    """The highest rate that was served well, 0 if none was."""
    return max((level.rate for level in levels if level.share >= served), default=0.0)


def main(argv: list[str]) -> int:
    args = _parse(argv)
    goal = Goal(args.ttft_ms / 1e3, args.tpot_ms / 1e3)
    runs: list[Run] = []

    def offer(rate: float) -> Level:
        level = Level(rate, measure(args, rate, *_requests(args, rate, len(runs))), goal)
        runs.append(level.run)
        print(json.dumps(level.summary()), flush=True)
        if args.html is not None:
            args.html.write_text(html(runs, _about(args), "quire bench sweep"), encoding="utf-8")
        return level

    levels = saturate(offer, args.rate, served=args.served, refine=args.refine)
    most = saturation(levels, args.served)
    told: dict[str, Any] = {"saturation": round(most, 3),
                            "peak_goodput": round(max(level.goodput for level in levels), 3)}
    problem = "" if most else f"not even {args.rate:g} requests/s were served well"
    if most and args.overload:
        turns = [offer(times * most) for _ in range(args.rounds) for times in (1, _BEYOND, args.overload)]
        problem = _overload([turns[::3], turns[1::3]], turns[2::3], args, told)
    print(json.dumps(told), flush=True)
    if args.html is not None:
        page = html(runs, {**_about(args), **_said(told)}, "quire bench sweep", saturation=most)
        args.html.write_text(page, encoding="utf-8")
    if problem:
        print(f"quire bench sweep: {problem}", file=sys.stderr)
    return 1 if problem else 0


def _overload(near: list[list[Level]], beyond: list[Level], args: argparse.Namespace, told: dict[str, Any]) -> str:
    """What is wrong with the server's behaviour far beyond the saturation point, if anything is. `near`: at and just
    above it, where goodput has its peak."""
    peak = max(_goodput(levels) for levels in near)
    kept = _goodput(beyond) / peak if peak else 0.0
    ttfts = [1e3 * sent.ttft for level in beyond for sent in level.run.good]
    told.update(overload=args.overload, goodput_near=round(peak, 3), goodput_kept=round(kept, 3),
                ttft_p99_ms=round(percentile(ttfts, 0.99), 1) if ttfts else None)
    broken = [error for level in beyond for error in level.run.errors() if not error.startswith(_REFUSED)]
    if broken:
        return f"at {beyond[0].rate:g} requests/s some failed that were not refused: {broken[0]}"
    if kept < 1 - args.loss:
        return (f"at {beyond[0].rate:g} requests/s goodput is {kept:.1%} of its peak of {peak:.3g}/s, which is near "
                f"the saturation point; at most {args.loss:.0%} may be lost (--loss)")
    return ""


def _goodput(levels: list[Level]) -> float:
    return statistics.fmean(level.goodput for level in levels)


def _requests(args: argparse.Namespace, rate: float, turn: int) -> tuple[list[list[int]], list[int]]:
    """Prompts of their own for each turn, so that no cache has them, and how long the outputs are."""
    number = max(_LEAST_REQUESTS, round(rate * args.seconds))
    lengths = [args.lengths] if args.lengths else workloads.load()[args.workload]["requests"]
    rng, top = random.Random(f"sweep {turn}"), workloads.top_id(args.vocab)
    chosen = [lengths[i % len(lengths)] for i in range(number)]
    return ([[rng.randrange(workloads.LOWEST_ID, top) for _ in range(num_prompt)] for num_prompt, _ in chosen],
            [num_output for _, num_output in chosen])


def _about(args: argparse.Namespace) -> dict[str, str]:
    lengths = "{} prompt and {} output tokens".format(*args.lengths) if args.lengths else args.workload
    return {"model": args.model, "server": args.url, "requests": lengths,
            "served well": f"first token within {shown(args.ttft_ms)} ms, later ones within {shown(args.tpot_ms)} ms"}


def _said(told: dict[str, Any]) -> dict[str, str]:
    names = {"saturation": "saturation point, requests/s", "peak_goodput": "best goodput, requests/s",
             "goodput_kept": "share of it kept beyond"}
    return {said: shown(told[name]) for name, said in names.items() if name in told}


def _lengths(text: str) -> list[int]:
    prompt, _, output = text.partition(":")
    return [count(prompt), count(output)]


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = CommandParser(prog="quire bench sweep", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add_server_flags(parser)
    parser.add_argument("--workload", default="sharegpt", choices=list(workloads.load()), help="[%(default)s]")
    parser.add_argument("--lengths", type=_lengths, metavar="PROMPT:OUTPUT",
                        help="tokens of every request, in place of a workload's")
    parser.add_argument("--rate", type=positive, default=1.0, metavar="X",
                        help="the first rate, requests a second [1]")
    parser.add_argument("--seconds", type=positive, default=60.0, metavar="S", help="for each rate [60]")
    parser.add_argument("--ttft-ms", type=positive, default=1000.0, metavar="MS", help="to the first token [1000]")
    parser.add_argument("--tpot-ms", type=positive, default=100.0, metavar="MS", help="for each later token [100]")
    parser.add_argument("--served", type=share, default=0.9, metavar="SHARE",
                        help="of the requests, to be served well [0.9]")
    parser.add_argument("--refine", type=int, default=3, metavar="N", help="rates between the last two [3]")
    parser.add_argument("--overload", type=positive, metavar="X", help="then offer X times the saturation point")
    parser.add_argument("--rounds", type=count, default=3, metavar="N",
                        help="of it, the saturation point and twice that [3]")
    parser.add_argument("--loss", type=share, default=0.05, metavar="SHARE",
                        help="of goodput that may be lost there [0.05]")
    args = parser.parse_args(argv)
    settle_server(parser, args)
    return args
