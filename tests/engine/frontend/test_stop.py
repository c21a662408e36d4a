from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quire.engine.frontend.stop import StopFinder

SMALL = st.text(st.sampled_from("ab\n"), min_size=1, max_size=5)


def whole(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The definition: the stop string that ends first, of those that end together the longest."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, minus_length, stop = min(ends)
    return text[:end if include else end + minus_length], stop


def stream(finder: StopFinder, deltas: list[str]) -> tuple[str, str | None]:
    shown = ""
    for delta in deltas:
        text, stop = finder.push(delta)
        shown += text
        if stop is not None:
            return shown, stop
    return shown + finder.flush(), None


@given(deltas=st.lists(st.text(st.sampled_from("ab\n"), max_size=6), max_size=12),
       stops=st.lists(SMALL, min_size=1, max_size=4), include=st.booleans())
def test_streaming_finds_what_a_search_of_the_whole_text_finds(deltas: list[str], stops: list[str],
                                                               include: bool) -> None:
    assert stream(StopFinder(stops, include), deltas) == whole("".join(deltas), stops, include)


@given(deltas=st.lists(st.text(st.sampled_from("ab\n"), max_size=6), max_size=12),
       stops=st.lists(SMALL, min_size=1, max_size=4))
def test_only_what_may_begin_a_stop_string_is_held_back(deltas: list[str], stops: list[str]) -> None:
    finder = StopFinder(stops)
    shown = seen = ""
    for delta in deltas:
        text, stop = finder.push(delta)
        shown, seen = shown + text, seen + delta
        if stop is not None:
            return
        held = seen[len(shown):]
        assert seen == shown + held
        assert not held or any(stop.startswith(held) for stop in stops)


def test_plain_text_passes_at_once() -> None:
    finder = StopFinder(["\n\nUser:"])
    assert finder.push("Hello") == ("Hello", None)
    assert finder.push(" there\n") == (" there", None)
    assert finder.push("\nUs") == ("", None)
    assert finder.push("ually") == ("\n\nUsually", None)


def test_the_end_of_a_delta_behind_a_stop_string_is_dropped() -> None:
    assert StopFinder(["STOP"]).push("onSTOPoff") == ("on", "STOP")
    assert StopFinder(["STOP"], True).push("onSTOPoff") == ("onSTOP", "STOP")


def test_a_shorter_stop_string_that_ends_first_wins() -> None:
    assert StopFinder(["abcd", "bc"]).push("abcd") == ("a", "bc")
