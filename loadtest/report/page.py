"""The report's page: tables, plots and the definition of each figure, in one file."""

from __future__ import annotations

import math
import time
from html import escape
from importlib import resources

from quire import __version__
from quire.loadtest.report.axis import shown
from quire.loadtest.report.measured import PERCENTILES, REQUESTS_A_SECOND, USERS, Run, percentile
from quire.loadtest.report.svg import Series, histogram, line_plot

_COLORS = dict(zip(PERCENTILES, ("c0", "c1", "c2")))
_KINDS = ("time to first token", "inter-token latency", "end to end")
_LOADS = {REQUESTS_A_SECOND: "offered load", USERS: "users"}  # what the loads of an axis are called
_MEANINGS = {
    REQUESTS_A_SECOND: "Requests a second at which requests are sent, at random times (Poisson arrivals). Requests do "
                       "not wait for each other, so a server that is too slow gets a queue. “All at once” sends them "
                       "at the start. A load's time is that from its start to the end of its last request.",
    USERS: "Programs that ask, read the answer to its end, wait for a moment and ask again: a server that is slow is "
           "asked less often. A row is of the time in which so many users were there and none came or left: its "
           "latencies are of the requests sent then, its answers and tokens what came then. The whole run has the time "
           "in between too, and at the end that of the last answers.",
}
_DEFINITIONS = {
    "answered a second": "Requests that ended well, by the time.",
    "output tokens/s": "Their tokens as the server's usage counts them, by the same time. Over time, what is counted "
                       "are chunks with a token, and a server may put several into one.",
    "time to first token (TTFT)": "From sending a request to its first chunk with a token: way, queue and prompt.",
    "inter-token latency (ITL)": "Between two chunks of one request after the first: one value for each gap.",
    "time per output token (TPOT)": "(last chunk − first chunk) / (tokens − 1): one value for each request.",
    "end to end": "From sending a request to its last chunk.",
    "p50, p90, p99": "The value that 50, 90 or 99 % of all values do not exceed, without interpolation; of fewer than "
                     "100 values, p99 is the greatest.",
    "over time": "Percentiles of the values that ended in each interval. A gap is an interval without any.",
    "in flight": "Requests that were sent and have not ended, in the middle of each interval, without failed ones.",
    "failed": "Requests with an error, a status other than 200 or a stream that broke off. No latency counts them.",
}


def html(runs: list[Run], about: dict[str, str], tool: str = "quire bench serve", whole: Run | None = None,
         saturation: float | None = None) -> str:
    """The whole file.

    Args:
        runs: one or more, of one axis of loads.
        about: what was measured where, as names and values.
        tool: what measured it.
        whole: the run that `runs` are parts of. With it, what went on over time is told of it, not of each of them.
        saturation: the load up to which requests were served well, to be marked.
    """
    style = resources.files("quire.loadtest").joinpath("report", "style.css").read_text(encoding="utf-8")
    title = f"Load test of {about.get('model') or about.get('server', 'a server')}"
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    about = {**about, "made": f"{made} by {tool}, quire {__version__}"}
    axis = runs[0].load.axis
    load = _LOADS[axis]
    body = [f"<h1>{escape(title)}</h1>", _about(about), "<h2>Summary</h2>",
            _summary([*runs, *([whole] if whole else [])], load)]
    if len(placed := [run for run in runs if run.load.value is not None]) > 1:
        body += [f"<h2>By {load}</h2>", _by_load(placed, axis, saturation)]
    for run in [whole] if whole else runs:
        body += [f"<h2>{escape(run.load.name.capitalize())}</h2>", _errors(run), _one(run)]
    body += ["<h2>What the figures mean</h2>", _definitions({load: _MEANINGS[axis], **_DEFINITIONS})]
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            f"<style>{style}</style></head><body><main>{''.join(body)}</main></body></html>\n")


def _about(about: dict[str, str]) -> str:
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in about.items())
    return f'<dl class="about">{rows}</dl>'


def _summary(runs: list[Run], load: str) -> str:
    head = (load, "requests", "failed", "answered a second", "output tokens/s")
    kinds = "".join(f'<th colspan="3" scope="colgroup">{name}, ms</th>'
                    for name in ("TTFT", "ITL", "TPOT", "end to end"))
    names = "".join(f'<th scope="col">{name}</th>' for name in PERCENTILES) * 4
    rows = []
    for run in runs:
        tpots = [1e3 * sent.tpot for sent in run.good if sent.tpot is not None]
        values = [run.values(_KINDS[0]), run.values(_KINDS[1]), tpots, run.values(_KINDS[2])]
        cells = [str(len(run.sent)), str(run.num_failed), shown(run.answered_per_s), shown(run.output_per_s)]
        cells += [_cell(percentile(one, q)) for one in values for q in PERCENTILES.values()]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(run.load.name)}</th>{row}</tr>')
    first = "".join(f'<th rowspan="2" scope="col">{name}</th>' for name in head)
    return (f'<div class="wide" tabindex="0"><table><thead><tr>{first}{kinds}</tr><tr>{names}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>")


def _cell(value: float) -> str:
    return "–" if math.isnan(value) else shown(value)


def _by_load(runs: list[Run], axis: str, saturation: float | None) -> str:
    """Latencies and throughput against the loads, each of which has a place on the axis."""
    placed = sorted(((run.load.value or 0.0, run) for run in runs), key=lambda pair: pair[0])
    marks = {"saturation point": (saturation, "c3")} if saturation else {}
    plots = []
    for kind in _KINDS:
        series = [Series(name, [(load, percentile(run.values(kind), q)) for load, run in placed], _COLORS[name])
                  for name, q in PERCENTILES.items()]
        plots.append(_figure(f"{kind.capitalize()} by load", line_plot(axis, "ms", series, log_y=True, marks=marks)))
    answered = [Series("answered", [(load, run.answered_per_s) for load, run in placed], "c0")]
    if axis == REQUESTS_A_SECOND:
        answered.append(Series("offered", [(0.0, 0.0), *((load, load) for load, _ in placed)], "c3", dashed=True))
    plots.append(_figure("Answered by load", line_plot(axis, "requests/s", answered, marks=marks)))
    tokens = [Series("output tokens/s", [(load, run.output_per_s) for load, run in placed], "c0")]
    plots.append(_figure("Output by load", line_plot(axis, "tokens/s", tokens, marks=marks)))
    return _grid(plots)


def _one(run: Run) -> str:
    plots = []
    for kind in _KINDS[:2]:
        series = [Series(name, points, _COLORS[name]) for name, points in run.over_time(kind).items()]
        plots.append(_figure(f"{kind.capitalize()} over time",
                             line_plot("seconds after the start", "ms", series, log_y=True, x_to=run.seconds)))
    for kind in _KINDS[:2]:
        marks = {name: (percentile(run.values(kind), q), _COLORS[name]) for name, q in PERCENTILES.items()}
        plots.append(_figure(f"{kind.capitalize()}: {len(run.values(kind)):,} values",
                             histogram("ms", run.values(kind), marks)))
    plots.append(_figure("Output over time", line_plot("seconds after the start", "tokens/s", [
        Series("output tokens/s", run.tokens_per_s(), "c0")], x_to=run.seconds)))
    in_flight = [Series("in flight", run.in_flight(), "c0")]
    if run.users:
        in_flight.append(Series("users", run.users, "c3", dashed=True))
    plots.append(_figure("Users and requests in flight" if run.users else "Requests in flight",
                         line_plot("seconds after the start", "requests", in_flight, x_to=run.seconds)))
    if run.num_failed:
        plots.append(_figure("Failed over time", line_plot("seconds after the start", "requests/s", [
            Series("sent then, and failed", run.failed_per_s(), "c2")], x_to=run.seconds)))
    return f"<p>Intervals of {shown(run.bin_s)} s.</p>" + _grid(plots)


def _errors(run: Run) -> str:
    if not run.errors():
        return ""
    items = "".join(f"<li>{count} × {escape(said)}</li>" for said, count in list(run.errors().items())[:20])
    said = f"{run.num_failed} of {len(run.sent)} requests failed:"
    return f'<div class="errors"><p>{said}</p><ul>{items}</ul></div>'


def _figure(title: str, plot: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{plot}</figure>"


def _grid(figures: list[str]) -> str:
    return f'<div class="grid-of-plots">{"".join(figures)}</div>'


def _definitions(meanings: dict[str, str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in meanings.items())
    return f"<dl>{items}</dl>"
