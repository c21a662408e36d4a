"""The forms of a decoder layer: where its norms stand, and what adds to the residual when.

A layer is called with the residual and the update that the layer before wants added to it, and gives both back, so that
an addition and the norm behind it are one kernel. Refuses to know weights: a family puts a form together from blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.layers.norm import Norm

KVCache = tuple[torch.Tensor, torch.Tensor]
Block = Callable[[torch.Tensor], torch.Tensor]


class Attention(Protocol):
    def __call__(self, x: torch.Tensor, inputs: AttentionInputs, kv_cache: KVCache, *, only_last: bool) -> torch.Tensor:
        """As self_attention.SelfAttention's."""


Carried = tuple[torch.Tensor | None, torch.Tensor]  # update, residual
Sum = Callable[[torch.Tensor], torch.Tensor]  # a rank's part of a sum -> the sum


class DecoderLayer(Protocol):
    """update, residual: [tokens, hidden] -> the layer's last update, not yet added, and the residual.

    Adds `update` (None: nothing is to be added) and what comes before the last update to the residual: in place,
    except that a model's last layer goes on with a copy of the rows of `inputs.last_tokens`, and both results are
    [seqs, hidden]. Nobody asks for the others; of a long prompt, one layer less.
    """

    whole_updates: bool  # False: updates are a rank's part of a sum, which the adding completes

    def __call__(self, update: torch.Tensor | None, residual: torch.Tensor, inputs: AttentionInputs, kv_cache: KVCache
                 ) -> Carried: ...


class _Layer:
    def __init__(self, attention: Attention, is_last: bool) -> None:
        self.attention = attention
        self._is_last = is_last

    def _attend(self, x: torch.Tensor, residual: torch.Tensor, inputs: AttentionInputs, kv_cache: KVCache
                ) -> tuple[torch.Tensor, torch.Tensor]:
        """What attention makes of x, and the rows of the residual that it is to be added to."""
        only_last = self._is_last and inputs.last_tokens is not None
        return self.attention(x, inputs, kv_cache, only_last=only_last), self._needed(residual, inputs)

    def _needed(self, rows: torch.Tensor, inputs: AttentionInputs) -> torch.Tensor:
        """Those that the layer goes on with behind attention."""
        if not self._is_last or inputs.last_tokens is None:
            return rows
        return rows.index_select(0, inputs.last_tokens)


class PreNormLayer(_Layer):
    """x += attention(norm(x)); x += mlp(norm(x)). Most families."""

    whole_updates = False

    def __init__(self, input_norm: Norm, attention: Attention, mlp_norm: Norm, mlp: Block, *,
                 is_last: bool) -> None:
        super().__init__(attention, is_last)
        self.input_norm, self.mlp_norm, self.mlp = input_norm, mlp_norm, mlp

    def __call__(self, update: torch.Tensor | None, residual: torch.Tensor, inputs: AttentionInputs, kv_cache: KVCache
                 ) -> Carried:
        x = self.input_norm(residual) if update is None else self.input_norm.add(update, residual)
        x, residual = self._attend(x, residual, inputs, kv_cache)
        return self.mlp(self.mlp_norm.add(x, residual)), residual


class ScaledLayer(PreNormLayer):
    """x += factor * attention(norm(x)); x += factor * mlp(norm(x)). Granite."""

    def __init__(self, input_norm: Norm, attention: Attention, mlp_norm: Norm, mlp: Block, *, factor: float,
                 is_last: bool) -> None:
        def scaled_attention(x: torch.Tensor, inputs: AttentionInputs, kv_cache: KVCache, *, only_last: bool
                             ) -> torch.Tensor:
            return attention(x, inputs, kv_cache, only_last=only_last).mul_(factor)

        super().__init__(input_norm, scaled_attention, mlp_norm, lambda x: mlp(x).mul_(factor), is_last=is_last)


class NormedResidualLayer(PreNormLayer):
    """x = norm(x); x += attention(x); x = norm(x); x += mlp(x): blocks add to what they were given. A form of BLOOM."""

    def __call__(self, update: torch.Tensor | None, residual: torch.Tensor, inputs: AttentionInputs, kv_cache: KVCache
                 ) -> Carried:
        x = self.input_norm(residual) if update is None else self.input_norm.add(update, residual)
        x, residual = self._attend(x, x, inputs, kv_cache)
        x = self.mlp_norm.add(x, residual)
        return self.mlp(x), x


class ParallelLayer(_Layer):
    """x += attention(norm(x)) + mlp(norm(x)), with one norm or two of the same x. Falcon, GPT-J, GPT-NeoX."""

    whole_updates = False

    def __init__(self, input_norm: Norm, attention: Attention, mlp_norm: Norm | None, mlp: Block, *,
                 is_last: bool) -> None:
        super().__init__(attention, is_last)
        self.input_norm, self.mlp_norm, self.mlp = input_norm, mlp_norm, mlp

    def __call__(self, update: torch.Tensor | None, residual: torch.Tensor, inputs: AttentionInputs, kv_cache: KVCache
                 ) -> Carried:
        x = self.input_norm(residual) if update is None else self.input_norm.add(update, residual)
        attended, residual = self._attend(x, residual, inputs, kv_cache)
        normed = self._needed(x, inputs) if self.mlp_norm is None else self.mlp_norm(residual)
        return attended.add_(self.mlp(normed)), residual


class SandwichLayer(_Layer):
    """x += norm(attention(norm(x))); x += norm(mlp(norm(x))); without the inner norms x += norm(attention(x)) and so
    on. Gemma 2 and 3, GLM-4; OLMo 2 and 3."""

    whole_updates = True

    def __init__(self, input_norm: Norm | None, attention: Attention, attention_norm: Norm, mlp_norm: Norm | None,
                 mlp: Block, output_norm: Norm, sum_over_ranks: Sum, *, is_last: bool) -> None:
        super().__init__(attention, is_last)
        self.input_norm, self.attention_norm = input_norm, attention_norm
        self.mlp_norm, self.mlp, self.output_norm = mlp_norm, mlp, output_norm
        self._sum = sum_over_ranks

    def __call__(self, update: torch.Tensor | None, residual: torch.Tensor, inputs: AttentionInputs, kv_cache: KVCache
                 ) -> Carried:
        x, residual = self._attend(_added(update, residual, self.input_norm), residual, inputs, kv_cache)
        x = self._sum(x)
        if self.mlp_norm is None:
            x = residual.add_(self.attention_norm(x))
        else:
            x = self.mlp_norm.add_normed(x, residual, self.attention_norm)
        return self.output_norm(self._sum(self.mlp(x))), residual


def _added(update: torch.Tensor | None, residual: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    """residual += update in place, then the norm of residual, or residual itself."""
    if norm is None:
        return residual if update is None else residual.add_(update)
    return norm(residual) if update is None else norm.add(update, residual, whole=True)


class PostNormLayer(_Layer):
    """x = norm(x + attention(x)); x = norm(x + mlp(x)): the norm's result is the residual. OPT-350m."""

    whole_updates = True

    def __init__(self, attention: Attention, attention_norm: Norm, mlp: Block, output_norm: Norm, *,
                 is_last: bool) -> None:
        super().__init__(attention, is_last)
        self.attention_norm, self.mlp, self.output_norm = attention_norm, mlp, output_norm

    def __call__(self, update: torch.Tensor | None, residual: torch.Tensor, inputs: AttentionInputs, kv_cache: KVCache
                 ) -> Carried:
        assert update is None, "a layer of this form leaves none"
        x, residual = self._attend(residual, residual, inputs, kv_cache)
        x = self.attention_norm.add(x, residual)
        return None, self.output_norm.add(self.mlp(x), x)
