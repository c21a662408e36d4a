"""One sample on its way through the scheduler: its tokens, its counters, and what it holds.

The owner of these facts; refuses to decide anything (`scheduler`) and to know blocks' state (`allocator`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from quire.engine.messages import Sampling
from quire.engine.plan import NewRow
from quire.engine.scheduling.block_run import BlockRun
from quire.engine.scheduling.prefix_index import root_of

if TYPE_CHECKING:
    from quire.engine.prompt_images import Image
    from quire.engine.scheduling.beam_group import BeamGroup
    from quire.engine.scheduling.feature_cache import Held

Order = tuple[int, float, int]  # (priority, virtual start, arrival): see `queue`


class RequestStatus(Enum):
    WAITING = 0  # in the queue, or a follower of a sample whose prompt is not computed yet
    RUNNING = 1  # has a row and blocks
    FINISHED = 2


class Request:
    """Invariants: num_computed < num_total <= max_total, and the block at column c of a run holds positions from
    c * block_size; of the columns before the run's first, no token that is still to be computed sees anything.

    `num_total` counts the tokens known to the host (`token_ids`) and those promised: sampled by a step in flight, their
    values still on the device. `num_computed` counts the positions that planned steps compute, finished or not. The
    vector of a request that pools is promised like a token, its only one.
    """

    __slots__ = (
        "beams", "block_hashes", "blocks", "finish_reason", "followers", "held", "images", "images_end", "key",
        "key_name", "leader", "max_total", "num_cached_tokens", "num_computed", "num_pooled", "num_preemptions",
        "num_prompt_tokens", "num_registered", "num_slots", "num_told", "num_total", "order", "pooled", "pools",
        "priority", "prompt_step", "register_at", "root", "row", "sampling", "seed", "status", "stop_token_id",
        "stop_token_ids", "token_ids", "weight",
    )

    def __init__(self, key: Hashable, prompt_token_ids: Sequence[int], sampling: Sampling, seed: int, *,
                 output_token_ids: Sequence[int] = (), priority: int = 0, cache_salt: str = "",
                 key_name: str = "", weight: float = 1.0, images: Sequence[Image] = ()) -> None:
        self.key = key
        self.key_name = key_name  # whose request it is, and that key's share of the queue
        self.weight = weight
        self.sampling = sampling
        self.stop_token_ids = frozenset(sampling.stop_token_ids)
        self.seed = seed
        self.priority = priority
        self.root = root_of(cache_salt)  # of its blocks' hashes
        self.images = images  # in the prompt's order
        self.images_end = images[-1].end if images else 0  # from here on no token is an image's
        self.num_prompt_tokens = len(prompt_token_ids)
        self.token_ids: list[int] = [*prompt_token_ids, *output_token_ids]
        self.num_total = len(self.token_ids)
        self.status = RequestStatus.WAITING
        self.finish_reason = ""
        self.stop_token_id = -1
        self.num_cached_tokens = -1  # prompt tokens found in the prefix cache; -1 until first admitted
        self.num_preemptions = 0
        self.pools = bool(sampling.pooling)  # it yields a vector, and no token
        self.num_pooled = 0  # of the prompt's tokens, those whose hidden states are planned to be summed
        self.pooled: Any = None  # the sum of those that steps have returned: see `pooled_sums`
        # Of the prompt's tokens, those whose logprobs are planned to be told, and the first; all where none is wanted.
        self.num_told = 1 if sampling.prompt_logprobs >= 0 else self.num_prompt_tokens
        # Set by the scheduler when the request is added.
        self.order: Order = (priority, 0.0, 0)  # the smaller goes first, in the queue and among the running
        self.max_total = 0  # num_total never grows beyond it
        # Samples of one prompt: the followers wait until the leader's prompt is computed, then share its blocks.
        self.leader: Request | None = None
        self.followers: list[Request] = []
        self.beams: BeamGroup | None = None  # whose beam it is
        # What it holds while it runs.
        self.row = -1
        self.blocks: list[BlockRun] = []  # of each KV group
        self.held: dict[int, Held] = {}  # images whose features are kept for it, by their first token
        self.num_slots = 0  # up to here all positions have, or had, a block in each group
        self.num_computed = 0
        self.prompt_step = -1  # the step with which its blocks hold the whole prompt; -1 before
        # Prefix cache: hashes of the full blocks so far, and how many of `blocks` the index knows.
        self.block_hashes: list[bytes] = []
        self.num_registered = 0
        self.register_at = 0  # known tokens at which the next block can be registered

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def started(self) -> bool:
        """Whether a step ever took it up."""
        return self.num_cached_tokens >= 0

    @property
    def tells(self) -> bool:
        """Whether logprobs of its prompt are still to be told."""
        return self.num_told < self.num_prompt_tokens

    @property
    def needs_every_token(self) -> bool:
        """Whether something is wanted of tokens before the last that the prefix cache does not have."""
        return self.tells or (self.sampling.pooling == "mean" and self.num_pooled < self.num_prompt_tokens)

    @property
    def num_in_flight(self) -> int:
        """Promised tokens: sampled by steps that are planned and not committed."""
        return self.num_total - len(self.token_ids)

    def new_row(self) -> NewRow:
        return NewRow(self.row, self.token_ids.copy(), self.num_prompt_tokens, self.sampling, self.seed,
                      [(image.first, image.grid) for image in self.images])

    def __repr__(self) -> str:
        return (f"Request({self.key!r}, {self.status.name}, row={self.row}, computed={self.num_computed}, "
                f"known={len(self.token_ids)}, total={self.num_total}/{self.max_total})")
