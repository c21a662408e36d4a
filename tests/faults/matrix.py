"""The fault matrix: what each fault does to a server in each state, within how many seconds, and the test that sees it.

A row is a fault, its four cells are the states of a server. `test_matrix.py` carries out what no other test does, and
checks that no cell is empty and that every test is there. `python -m tests.faults.matrix` prints the tests' node ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

IDLE, LOADING, STREAMING, DRAINING = STATES = ("idle", "loading", "streaming", "draining")

# Outcomes
SAME: Final = "streams end with the text that they would have had, and so do those that follow"
LOADS: Final = "it gets ready, and serves as ever"
ENDS_0: Final = "exit 0, and no process is left"
ENDS_3: Final = "exit 3 with the reason, and no process is left"
ENDS_2: Final = "exit 2 with one line that says why"
NOTHING_LEFT: Final = "no process is left"
NOW: Final = "exit 0 at once, and no process is left"
OWN_ALONE: Final = "it ends what it struck, and nothing else"
WAITS: Final = "a load has no time limit: it goes on, and /readyz says so"
OLD_STAYS: Final = "what was read before stays in use, and a gauge shows it"
NEW_TAKEN: Final = "the new one is taken, and no stream ends"


@dataclass(frozen=True)
class Tried:
    outcome: str
    within_s: float  # most that it may take from the fault to the outcome, on two cores that nobody else uses
    by: str  # a test's node id, without parameters


@dataclass(frozen=True)
class Never:
    """There is no such cell."""

    because: str


LIFE = "tests/faults/test_matrix.py::test_a_life_with"
MATRIX, FAULTS = "tests/faults/test_matrix.py", "tests/faults"
LIFECYCLE, TLS, KEYS = "tests/e2e/test_lifecycle.py", "tests/e2e/test_tls.py", "tests/e2e/test_keys.py"
CLIENT = "tests/engine/frontend/test_client.py"
LOAD_S = 90.0
NO_LIMIT = Tried(WAITS, 20, "tests/app/test_engine_child.py::test_loading_has_no_limit_and_serving_has")
LOAD_BREAKS = Tried(ENDS_3, 20, "tests/engine/test_exit_codes.py::test_a_load_that_breaks_is_logged_as_one_event")
NO_TEXT = Never("no request has text then")


def life(outcome: str, within_s: float) -> Tried:
    return Tried(outcome, within_s, LIFE)


Cells = dict[str, Tried | Never]


def through(within_s: float, **others: Tried | Never) -> Cells:
    """A whole life with the fault, within so many seconds each time, but for `others`."""
    cells: Cells = {state: life(SAME, within_s) for state in STATES}
    return cells | {LOADING: life(LOADS, LOAD_S)} | others


MATRIX_ROWS: dict[str, Cells] = {
    "SIGTERM": {
        IDLE: Tried(ENDS_0, 20, f"{MATRIX}::test_what_ends_a_server"),
        LOADING: Tried(ENDS_0, 30, f"{MATRIX}::test_what_ends_a_server"),
        STREAMING: Tried(f"{SAME}; then {ENDS_0}", 60,
                          f"{LIFECYCLE}::test_what_runs_outlives_a_killed_engine_and_sigterm_lets_the_rest_finish"),
        DRAINING: Tried(NOW, 15, f"{LIFECYCLE}::test_systemd_hears_of_the_end_and_a_second_signal_is_now"),
    },
    "SIGKILL of the launcher": {
        IDLE: Tried(NOTHING_LEFT, 5, f"{MATRIX}::test_what_ends_a_server"),
        **{state: Tried(NOTHING_LEFT, 5, f"{LIFECYCLE}::test_nothing_outlives_a_killed_launcher")
           for state in (LOADING, STREAMING, DRAINING)},
    },
    "SIGKILL of the engine": through(60, loading=Tried(ENDS_3, 20, f"{MATRIX}::test_what_ends_a_server")),
    "SIGKILL of an HTTP worker": through(
        30, streaming=Tried(OWN_ALONE, 10, f"{FAULTS}/test_worker_killed.py::"
                                            "test_only_its_own_streams_end_and_their_blocks_are_freed"),
        draining=Tried(f"its streams are cut; {ENDS_0}", 30, f"{MATRIX}::test_a_worker_killed_in_a_drain")),
    "SIGSTOP of the engine": through(60, loading=NO_LIMIT),
    "a step hangs": through(60, loading=NO_LIMIT),
    "a step raises": through(60, loading=LOAD_BREAKS),
    "out of memory in a step": through(60, loading=LOAD_BREAKS),
    "a slow step": through(30, loading=NO_LIMIT),
    "an exception in one request's text": {
        IDLE: NO_TEXT, LOADING: NO_TEXT,
        STREAMING: Tried(OWN_ALONE, 30, f"{MATRIX}::test_a_fault_in_one_requests_text_is_its_own"),
        DRAINING: Tried(OWN_ALONE, 30, f"{MATRIX}::test_a_fault_in_one_requests_text_is_its_own"),
    },
    "broken frames to the engine": through(30),
    "broken frames of the engine": {
        IDLE: Tried(SAME, 10, f"{CLIENT}::test_words_about_requests_that_are_gone_are_passed_over"),
        LOADING: Tried("the HTTP worker ends, and another takes its place", 10,
                        f"{CLIENT}::test_a_frame_that_cannot_be_read_before_the_engine_is_ready_ends_the_connection"),
        **{state: Tried(OWN_ALONE, 10, f"{CLIENT}::"  # who reads frames does not know of a drain
                         "test_a_frame_that_cannot_be_read_ends_what_it_may_have_been_about_and_no_more")
           for state in (STREAMING, DRAINING)},
    },
    "full run directory": through(
        30, loading=Tried(ENDS_2, 30, f"{FAULTS}/test_full_run_dir.py::"
                                       "test_a_run_directory_without_room_ends_with_one_line"),
        streaming=Tried(SAME, 60, f"{FAULTS}/test_full_run_dir.py::test_a_run_directory_that_fills_up_costs_no_stream"
                                   "_and_a_new_worker_serves_all_the_same")),
    "full /dev/shm": through(60),
    "full stderr": through(60),
    "closed stderr": through(60),
    "clock jump": through(60),
    "certificate swap": {
        IDLE: Tried("the new one is taken", 20, f"{TLS}::test_sighup_reads_certificates_again"),
        LOADING: Tried("the new one is taken", 10,
                        "tests/app/test_certificates.py::test_a_certificate_renewed_while_a_worker_starts_is_taken"),
        STREAMING: Tried(NEW_TAKEN, 20, f"{TLS}::test_a_new_certificate_is_taken_without_dropping_a_stream"),
        DRAINING: Tried(NEW_TAKEN, 60, f"{MATRIX}::test_a_certificate_swapped_in_a_drain"),
    },
    "broken key file": through(
        30, idle=Tried(OLD_STAYS, 20, f"{KEYS}::test_a_broken_file_keeps_the_old_set_and_turns_the_gauge"),
        loading=Tried(OLD_STAYS, 10, "tests/app/keys/test_ring.py::"
                                      "test_a_worker_that_starts_while_the_file_is_broken_has_the_keys_of_the_others")),
    "dead trace collector": through(60),
    "1,000 disconnects": through(90),
    "slow readers": through(60, idle=NO_TEXT, loading=NO_TEXT),
    "one engine of two gone": through(
        60, loading=Tried(ENDS_3, 10,
                           "tests/app/test_launcher.py::test_before_all_were_ready_the_loss_of_one_is_the_end"),
        streaming=Tried(SAME, 60, f"{FAULTS}/test_engine_gone.py::"
                                   "test_the_healthy_engine_serves_on_and_goes_on_with_what_the_other_had")),
}


def node_ids() -> list[str]:
    """Each once, in the table's order; test_matrix.py checks the table itself, too."""
    cells = [cell for row in MATRIX_ROWS.values() for cell in row.values()]
    found = dict.fromkeys(cell.by for cell in cells if isinstance(cell, Tried))
    return [MATRIX, *(test for test in found if not test.startswith(MATRIX))]


if __name__ == "__main__":
    print(*node_ids(), sep="\n")
