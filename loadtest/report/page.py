"""The report's page: tables, plots and the definition of each figure, in one file."""

from __future__ import annotations

import math
import time
from html import escape
from importlib import resources

from quire import __version__
from quire.loadtest.report.axis import shown
from quire.loadtest.report.measured import PERCENTILES, Run, percentile
from quire.loadtest.report.svg import Series, histogram, line_plot

_COLORS = dict(zip(PERCENTILES, ("c0", "c1", "c2")))
_KINDS = ("time to first token", "inter-token latency", "end to end")
_DEFINITIONS = {
    "offered load": "Requests a second at which requests are sent, at random times (Poisson arrivals). Requests do not "
                    "wait for each other, so a server that is too slow gets a queue. “All at once” sends them at the "
                    "start.",
    "answered a second": "Requests that ended well, by the time from the start to the end of the last one.",
    "output tokens/s": "Tokens of those requests as the server's usage counts them, by the same time. Over time, what "
                       "is counted are chunks with a token, and a server may put several into one.",
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


def html(runs: list[Run], about: dict[str, str]) -> str:
    """The whole file. `about`: what was measured where, as names and values."""
    style = resources.files("quire.loadtest").joinpath("report", "style.css").read_text(encoding="utf-8")
    title = f"Load test of {about.get('model', 'a server')}"
    made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    about = {**about, "made": f"{made} by quire {__version__} bench serve"}
    body = [f"<h1>{escape(title)}</h1>", _about(about), "<h2>Summary</h2>", _summary(runs)]
    if len(runs) > 1:
        body += ["<h2>By offered load</h2>", _by_load(runs)]
    for run in runs:
        body += [f"<h2>{escape(rate_shown(run).capitalize())}</h2>", _errors(run), _one(run)]
    body += ["<h2>What the figures mean</h2>", _definitions()]
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            f"<style>{style}</style></head><body><main>{''.join(body)}</main></body></html>\n")


def rate_shown(run: Run) -> str:
    return f"{shown(run.rate)} requests/s" if run.rate else "all at once"


def _about(about: dict[str, str]) -> str:
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in about.items())
    return f'<dl class="about">{rows}</dl>'


def _summary(runs: list[Run]) -> str:
    head = ("offered load", "requests", "failed", "answered a second", "output tokens/s")
    kinds = "".join(f'<th colspan="3" scope="colgroup">{name}, ms</th>'
                    for name in ("TTFT", "ITL", "TPOT", "end to end"))
    names = "".join(f'<th scope="col">{name}</th>' for name in PERCENTILES) * 4
    rows = []
    for run in runs:
        tpots = [1e3 * sent.tpot for sent in run.good if sent.tpot is not None]
        values = [run.values(_KINDS[0]), run.values(_KINDS[1]), tpots, run.values(_KINDS[2])]
        cells = [str(run.summary["requests"]), str(run.summary["failed"]), shown(run.summary["req_s"]),
                 shown(run.summary["out_tok_s"])]
        cells += [_cell(percentile(one, q)) for one in values for q in PERCENTILES.values()]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(rate_shown(run))}</th>{row}</tr>')
    first = "".join(f'<th rowspan="2" scope="col">{name}</th>' for name in head)
    return (f'<div class="wide" tabindex="0"><table><thead><tr>{first}{kinds}</tr><tr>{names}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>")


def _cell(value: float) -> str:
    return "–" if math.isnan(value) else shown(value)


def _by_load(runs: list[Run]) -> str:
    """Latencies and throughput against the rates; a run of all at once has none, and is left out."""
    rated = sorted((run for run in runs if run.rate), key=lambda run: run.rate)
    plots = []
    for kind in _KINDS:
        series = [Series(name, [(run.rate, percentile(run.values(kind), q)) for run in rated], _COLORS[name])
                  for name, q in PERCENTILES.items()]
        plots.append(_figure(f"{kind.capitalize()} by load",
                             line_plot("offered load, requests/s", "ms", series, log_y=True)))
    answered = [Series("answered", [(run.rate, run.summary["req_s"]) for run in rated], "c0"),
                Series("offered", [(0.0, 0.0), *((run.rate, run.rate) for run in rated)], "c3", dashed=True)]
    plots.append(_figure("Answered by load", line_plot("offered load, requests/s", "requests/s", answered)))
    tokens = [Series("output tokens/s", [(run.rate, run.summary["out_tok_s"]) for run in rated], "c0")]
    plots.append(_figure("Output by load", line_plot("offered load, requests/s", "tokens/s", tokens)))
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
    plots.append(_figure("Requests in flight", line_plot("seconds after the start", "requests", [
        Series("in flight", run.in_flight(), "c0")], x_to=run.seconds)))
    return f"<p>Intervals of {shown(run.bin_s)} s.</p>" + _grid(plots)


def _errors(run: Run) -> str:
    if not run.errors():
        return ""
    items = "".join(f"<li>{count} × {escape(said)}</li>" for said, count in list(run.errors().items())[:20])
    said = f"{run.summary['failed']} of {run.summary['requests']} requests failed:"
    return f'<div class="errors"><p>{said}</p><ul>{items}</ul></div>'


def _figure(title: str, plot: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{plot}</figure>"


def _grid(figures: list[str]) -> str:
    return f'<div class="grid-of-plots">{"".join(figures)}</div>'


def _definitions() -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _DEFINITIONS.items())
    return f"<dl>{items}</dl>"
