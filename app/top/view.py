"""A server's state as lines of text, each with a style for terminals that have any. Pure."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from quire.app.duration import duration
from quire.app.top.figures import PERCENTILES, Figures
from quire.app.top.server_state import KeyLimits, ServerState

BOLD, DIM, GOOD, BAD, PLAIN = "1", "2", "32", "31", ""
_BARS = "▁▂▃▄▅▆▇█"
_STYLES = {"ready": GOOD, "answers": GOOD}
_UNKNOWN = "-"
_MOST_KEYS = 12


@dataclass(frozen=True)
class Text:
    text: str
    style: str = PLAIN


def page(address: str, state: ServerState, figures: Figures | None, width: int = 100) -> list[Text]:
    """All there is to see, in lines of at most `width` characters."""
    lines = [_head(address, state), *_health(state, width)]
    if figures is not None:
        lines += [Text(""), *_levels(figures, width), Text(""), *_latencies(figures), *_keys(figures, state.keys)]
    return [Text(line.text[:width], line.style) for line in lines]


def summary(state: ServerState, figures: Figures | None) -> str:
    """One line, for a log."""
    parts = [state.problem or _status(state)]
    if figures is not None:
        parts += [f"running {_number(figures.running)}", f"waiting {_number(figures.waiting)}",
                  f"kv {_percent(figures.kv_usage)}", f"hits {_percent(figures.cache_hits)}",
                  f"tokens/s in {_number(figures.in_per_s)} out {_number(figures.out_per_s)}"]
        parts.append(f"{_window(figures)}:")
        for title, latency in figures.latencies.items():
            told = zip(PERCENTILES, latency.percentiles)
            parts.append(f"{title} " + " ".join(f"p{100 * q:g} {seconds_shown(value)}" for q, value in told))
    elif state.load is not None:
        parts.append(f"in flight {state.load}")
    return ", ".join(parts).replace(":, ", ": ")


def _head(address: str, state: ServerState) -> Text:
    parts = ["quire"]
    if state.admin is not None:
        parts += [state.admin.version, str(state.admin.settings.get("model", "")),
                  f"up {duration(state.admin.uptime_s)}"]
    return Text("  ".join([*filter(None, parts), address]), BOLD)


def _status(state: ServerState) -> str:
    readiness = state.readiness
    text = readiness.status
    if readiness.phase:
        text += f": {readiness.phase} {readiness.fraction:.0%}"
        text += "" if readiness.eta_s is None else f", about {duration(readiness.eta_s)} left"
    return text + (f" without engines {', '.join(map(str, readiness.engines_gone))}" if readiness.engines_gone else "")


def _health(state: ServerState, width: int) -> list[Text]:
    if state.problem:
        return _wrapped(state.problem, width, BAD)
    lines = [Text(_status(state), _STYLES.get(state.readiness.status, BAD))]
    readiness = state.readiness
    if readiness.phase:
        filled = round(40 * readiness.fraction)
        lines.append(Text("[" + "#" * filled + "." * (40 - filled) + "]"))
    if state.load is not None:
        lines.append(Text(f"requests in flight  {state.load}"))
    if state.no_scrape:
        lines += _wrapped(f"no figures: {state.no_scrape}", width, DIM)
    return lines


def _wrapped(text: str, width: int, style: str) -> list[Text]:
    """A sentence whose end says the most."""
    return [Text(line, style) for line in textwrap.wrap(text, width, break_on_hyphens=False)]


def _levels(figures: Figures, width: int) -> list[Text]:
    room = max(0, min(60, width - 40))
    window = _window(figures)

    def line(title: str, value: str, history: str, most: float | None = None) -> Text:
        return Text(f"{title:<18}{value:>10}  {sparkline(figures.histories.get(history, []), room, most)}".rstrip())

    return [
        line("running", _number(figures.running), "running"),
        line("waiting", _number(figures.waiting), "waiting"),
        line("KV cache in use", _percent(figures.kv_usage), "kv_usage", 1.0),
        line("tokens/s in", _number(figures.in_per_s), "in_per_s"),
        line("tokens/s out", _number(figures.out_per_s), "out_per_s"),
        Text(f"{'answers/s':<18}{_number(figures.requests_per_s):>10}"),
        Text(f"{'prefix cache hits':<18}{_percent(figures.cache_hits):>10}  {window}"),
        Text(f"{'refused, aborted':<18}{f'{figures.refused:,.0f}, {figures.aborted:,.0f}':>10}  {window}",
             BAD if figures.refused else PLAIN),
        *([Text(f"{'engine restarts':<18}{figures.restarts:>10,.0f}", BAD)] if figures.restarts else [])]


def _latencies(figures: Figures) -> list[Text]:
    head = f"{_window(figures):<18}" + "".join(f"{f'p{100 * q:g}':>10}" for q in PERCENTILES) + f"{'of':>10}"
    return [Text(head, DIM)] + [
        Text(f"{title:<18}" + "".join(f"{seconds_shown(value):>10}" for value in latency.percentiles)
             + f"{latency.num:>10,}")
        for title, latency in figures.latencies.items()]


def _keys(figures: Figures, limits: dict[str, KeyLimits]) -> list[Text]:
    if not figures.keys:
        return []
    head = f"{'key, ' + _window(figures):<26}{'requests':>10}{'tokens in':>12}{'tokens out':>12}  limits"
    lines = [Text(""), Text(head, DIM)]
    for name, use in list(figures.keys.items())[:_MOST_KEYS]:
        lines.append(Text(f"{name[:25]:<26}{use.requests:>10,.0f}{use.tokens_in:>12,.0f}{use.tokens_out:>12,.0f}"
                          f"  {_limits(limits.get(name))}".rstrip()))
    if len(figures.keys) > _MOST_KEYS:
        lines.append(Text(f"and {len(figures.keys) - _MOST_KEYS} more", DIM))
    return lines


def _limits(limits: KeyLimits | None) -> str:
    if limits is None:
        return ""
    told = ((limits.requests_per_minute, "requests/min"), (limits.tokens_per_minute, "tokens/min"),
            (limits.max_concurrent, "at once"))
    return ", ".join([f"{value:,} {what}" for value, what in told if value] + ["expired"] * limits.expired)


def _window(figures: Figures) -> str:
    return "since its start" if figures.window_s is None else f"last {figures.window_s:.0f} s"


def sparkline(values: list[float], width: int, most: float | None = None) -> str:
    """The last `width` values as bars from 0 to `most`, or to the highest of them."""
    shown = values[-width:] if width > 0 else []
    top = most or max(shown, default=0.0)
    if top <= 0:
        return _BARS[0] * len(shown)
    return "".join(_BARS[min(len(_BARS) - 1, int(value / top * len(_BARS)))] for value in shown)


def seconds_shown(seconds: float | None) -> str:
    if seconds is None:
        return _UNKNOWN
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.1f}" if 0 < value < 10 and value != int(value) else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.0%}"
