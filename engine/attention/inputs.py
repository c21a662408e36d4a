"""What attention needs to know of a step, shared by all layers. Filled by `quire.engine.execution.batch`.

Sequences are in plan order: the first `num_decodes` have one query token each, the rest any number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from quire.engine.attention.media import StepFeatures


@dataclass(slots=True)
class AttentionInputs:
    """Device tensors of one step, and the host's upper bounds on them.

    Under a CUDA graph the tensors keep their addresses and the bounds are those of the captured size: padded
    sequences have context_lens 0 and padded tokens slot -1, and kernels must leave both alone.
    """

    # [tokens] int32: by which row of the rotary table each token turns, its position in its sequence (with M-RoPE, plus
    # its row's delta); or, with `angles`, its place in the step.
    positions: torch.Tensor
    slots: torch.Tensor  # [tokens] int32, block * block_size + offset where its K and V go; -1 = nowhere
    query_starts: torch.Tensor  # [seqs + 1] int32, first token of each sequence in the flat batch
    context_lens: torch.Tensor  # [seqs] int32, K/V tokens after this step's writes; the last query sees all of them
    # [seqs, max_blocks] int32, ids of the blocks that hold positions 0, block_size, ...; of those that no query of the
    # step sees any of they may be anybody's, and in columns behind the last may be anything.
    block_tables: torch.Tensor
    num_decodes: int
    max_query_len: int
    max_context_len: int  # upper bound of context_lens
    first_whole: int  # from this sequence on, all are prompts of which nothing was computed before; seqs if unknown
    # [seqs] int32, the last token of each sequence: the model's last layer goes on with no other. None: with all.
    last_tokens: torch.Tensor | None = None
    # Where decoding sequences begin with the same blocks (None: nowhere, or not worth it): [decodes] int32, how many
    # tokens each has in common with the others (0 = none); and [decodes] int32, which sequences these are, then -1.
    shared: tuple[torch.Tensor, torch.Tensor] | None = None
    # The host's own copies for the CPU path (lists parallel to seqs); None under CUDA, which never reads them.
    host_query_lens: list[int] | None = None
    host_context_lens: list[int] | None = None
    # [tokens, rotary_dim] float32, in place of the layers' own rotary table: a row a token. Of steps with images.
    angles: torch.Tensor | None = None
    media: StepFeatures | None = None
    # Called at each layer on a CPU, where a step may be long: it gets on. None under CUDA.
    advances: Callable[[], None] | None = None
    # What a backend works out at the first layer and needs again at the others; its own business.
    scratch: dict[str, Any] = field(default_factory=dict)
    # The same step with the slots and tables of the KV groups behind the first, which are above.
    other_groups: list[AttentionInputs] = field(default_factory=list)

    def of_groups(self, slots: torch.Tensor, block_tables: torch.Tensor) -> AttentionInputs:
        """With [groups, tokens] slots and [groups, seqs, max_blocks] block tables."""
        each = [replace(self, slots=s, block_tables=t, scratch={}) for s, t in zip(slots, block_tables)]
        each[0].other_groups = each[1:]
        return each[0]

    def of_group(self, group: int) -> AttentionInputs:
        return self if group == 0 else self.other_groups[group - 1]

    def of_last_tokens(self) -> AttentionInputs:
        """Of each sequence the last query alone, once all K and V of the step are written.

        positions and slots still speak of all tokens and must not be read.
        """
        num_seqs = self.context_lens.shape[0]
        query_starts = torch.arange(num_seqs + 1, dtype=torch.int32, device=self.context_lens.device)
        return replace(self, query_starts=query_starts, num_decodes=num_seqs, max_query_len=1, first_whole=num_seqs,
                       last_tokens=None, shared=None,
                       host_query_lens=None if self.host_query_lens is None else [1] * num_seqs, scratch={})
