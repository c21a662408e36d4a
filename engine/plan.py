"""Border 2: what one step computes, as integers. The scheduler writes it, every rank carries it out identically.

Ranks that are processes of their own also get `Allocate` and answer as `FromRank` says: once each, in this order,
RankLoading aside, until the first plan; then one Done a plan, from the rank that reports.

A *row* is a place in each rank's request table, a sample's for as long as it runs. All positions count from the first
prompt token. Nothing here depends on token values, so a plan for step N+1 is made while step N still runs; beams alone,
whose next tokens the host chooses, wait for their step's results.
"""

from __future__ import annotations

from itertools import compress
from operator import add

import msgspec

from quire.engine.messages import Sampling
from quire.engine.model_facts.vision import Grid

NOTHING_LEFT = -1  # in place of a sampled token: none could be drawn


class NewRow(msgspec.Struct, array_like=True, frozen=True):
    """A sample enters row `row` (first time, or resumed after preemption or a crash)."""

    row: int
    token_ids: list[int]  # prompt, then the output tokens known so far
    num_prompt_tokens: int
    sampling: Sampling
    seed: int
    images: list[tuple[int, Grid]] = []  # of the prompt, in order: place of the first token, and the image's grid


class Encode(msgspec.Struct, array_like=True, frozen=True):
    """The vision tower makes an image's features, which are kept from row `first_row` of each rank's features on."""

    path: str  # file of its pixels, of the right size: `Media.path`
    grid: Grid
    first_row: int


class StepPlan(msgspec.Struct, array_like=True, tag="step"):
    """One step. The scheduled rows are `rows`; lists named alike are parallel to it.

    Carried out in this order: copies, new rows, block table entries, known tokens, encodes, forward, sampling.
    """

    step: int
    rows: list[int] = []  # those with num_tokens == 1 come first (see num_decodes)
    starts: list[int] = []  # position of the first token computed
    num_tokens: list[int] = []  # how many are computed, >= 1
    samples: list[bool] = []  # whether a next token is sampled
    num_decodes: int = 0  # the first so many rows compute one token each
    new_rows: list[NewRow] = []
    # Block table entries that changed: table[block_groups[i], block_rows[i], block_columns[i]] = block_ids[i].
    block_groups: list[int] = []
    block_rows: list[int] = []
    block_columns: list[int] = []
    block_ids: list[int] = []
    # Decoding rows (by place in `rows`) whose first num_shared_tokens tokens lie in the same blocks, where knowing it
    # saves reading them once a row.
    shared_places: list[int] = []
    num_shared_tokens: int = 0
    # Rows (by place in `rows`) whose first token the table does not have, and that token: of a pipeline, whose first
    # stage does not sample, all that compute one; beams, whose next tokens the host chooses.
    known_places: list[int] = []
    known_ids: list[int] = []
    # Copy-on-write, in every layer: whole blocks that end within a prompt, for samples of it that write on from there.
    copy_sources: list[int] = []
    copy_targets: list[int] = []
    # Rows (by place in `rows`) whose prompt's logprobs are wanted: of so many tokens, from this position on.
    told_places: list[int] = []
    told_firsts: list[int] = []
    told_counts: list[int] = []
    # Rows (by place in `rows`) whose hidden states are wanted: of so many tokens, the last that are computed of each.
    pooled_places: list[int] = []
    pooled_counts: list[int] = []
    encodes: list[Encode] = []
    # Tokens of images that the step computes, an entry for each image: in the row at that place of `rows`, the position
    # of the first, how many they are, and which row of features is the first one's; the others' follow it.
    media_places: list[int] = []
    media_firsts: list[int] = []
    media_counts: list[int] = []
    media_rows: list[int] = []

    @property
    def needs_all_tokens(self) -> bool:
        """Whether what the last layer makes of other tokens than each row's last is wanted too."""
        return bool(self.told_places) or (bool(self.pooled_counts) and max(self.pooled_counts) > 1)

    @property
    def only_decodes(self) -> bool:
        return self.num_decodes == len(self.rows)

    @property
    def max_query_len(self) -> int:
        return 1 if self.only_decodes else max(self.num_tokens)

    @property
    def ends(self) -> list[int]:
        """Position after the last token computed."""
        return list(map(add, self.starts, self.num_tokens))

    @property
    def sampling_rows(self) -> list[int]:
        return list(compress(self.rows, self.samples))

    @property
    def sampled_positions(self) -> list[int]:
        """Where the tokens that `sampling_rows` get will stand."""
        return list(compress(self.ends, self.samples))


Logprobs = tuple[float, int, list[int], list[float]]  # of a token: its own, its rank, the likeliest ids and theirs


class StepResult(msgspec.Struct, array_like=True):
    """What the sampled rows got, in the order of the plan's rows with `samples` set."""

    token_ids: list[int]
    logprobs: dict[int, Logprobs] = {}  # for rows that asked for them, by place in token_ids
    prompt_logprobs: list[list[Logprobs]] = []  # of each row in told_places, of each of its tokens
    pooled: list[bytes] = []  # of each row in pooled_places, the sum of its tokens' hidden states: float32 each


class Allocate(msgspec.Struct, array_like=True, tag="allocate"):
    """The KV cache is to have so many blocks, the same on all ranks."""

    num_blocks: int


class RankLoading(msgspec.Struct, array_like=True, tag="loading"):
    phase: str
    fraction: float


class Capacity(msgspec.Struct, array_like=True, tag="capacity"):
    """The model is loaded, and leaves room for so many blocks."""

    num_blocks: int
    vocab_size: int
    generates: bool = True  # False: the model has no head, and makes hidden states alone


class Prepared(msgspec.Struct, array_like=True, tag="prepared"):
    """Plans may come."""


class Advances(msgspec.Struct, array_like=True, tag="advances"):
    """A step of this rank gets on; told now and then where it may be long, on a CPU."""


class Done(msgspec.Struct, array_like=True, tag="done"):
    result: StepResult
    num_graph_steps: int  # that CUDA graphs carried out so far


class Failed(msgspec.Struct, array_like=True, tag="failed"):
    """The rank ends. kind: "config" (problems, a line each), "load" or "broken" (what there is to say of it)."""

    kind: str
    problems: list[str]


ToRank = Allocate | StepPlan
FromRank = RankLoading | Capacity | Prepared | Advances | Done | Failed
