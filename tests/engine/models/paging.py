"""Runs a model through a paged cache by hand: the steps that the engine would plan, chosen by the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.config import EngineArgs, EngineConfig
from quire.engine.models.base import CausalLM
from quire.engine.parallel import Parallel
from quire.engine.weights.load import load_model
from quire.engine.weights.locate import resolve_model

BLOCK_SIZE = 16


def load(path: Path | str, *, max_model_len: int = 128, dtype: str = "float32",
         progress: Callable[[str, float], None] = lambda phase, fraction: None, parallel: Parallel | None = None,
         on: str = "cpu", **args: Any) -> CausalLM:
    config = config_of(path, max_model_len=max_model_len, dtype=dtype, **args)
    return load_model(config, parallel or Parallel(), torch.device(on), getattr(torch, dtype), progress)


def config_of(path: Path | str, *, max_model_len: int = 128, dtype: str = "float32", **args: Any) -> EngineConfig:
    engine_args = EngineArgs(model=str(path), **args)
    return EngineConfig(args=engine_args, model=resolve_model(engine_args), device="cpu", dtype=dtype,
                        max_model_len=max_model_len, max_num_seqs=8, max_num_batched_tokens=512, num_steps_ahead=0)


class PagedRun:
    """Some sequences in one cache, their blocks scattered."""

    def __init__(self, model: CausalLM, num_seqs: int, max_len: int) -> None:
        self.model = model
        blocks_each = -(-max_len // BLOCK_SIZE)
        num_blocks = num_seqs * blocks_each
        order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(7)).int()
        self._tables = order.view(num_seqs, blocks_each)
        self._lens = [0] * num_seqs
        shape = (num_blocks, model.num_kv_heads, BLOCK_SIZE, model.head_dim)
        dtype = model.dtype
        self._device = model.device
        self._caches = [tuple(torch.zeros(shape, dtype=dtype, device=self._device) for _ in range(2))
                        for _ in range(model.num_layers)]

    @torch.inference_mode()
    def step(self, chunks: dict[int, list[int]], *, only_last: bool = False) -> dict[int, torch.Tensor]:
        """Sequence -> its next tokens; single ones first. Returns the logits of every token, [tokens, vocab], or only
        of the last, [1, vocab]."""
        seqs, counts = list(chunks), [len(tokens) for tokens in chunks.values()]
        num_decodes = next((i for i, count in enumerate(counts) if count > 1), len(counts))
        starts = [self._lens[s] for s in seqs]
        positions = torch.cat([torch.arange(a, a + n) for a, n in zip(starts, counts)])
        rows = torch.tensor(seqs).repeat_interleave(torch.tensor(counts))
        blocks = self._tables[rows, positions // BLOCK_SIZE]
        contexts = [a + n for a, n in zip(starts, counts)]
        query_starts = torch.tensor([0, *counts]).cumsum(0).int()

        def put(x: torch.Tensor) -> torch.Tensor:
            return x.int().to(self._device)

        on_cpu = self._device.type == "cpu"
        inputs = AttentionInputs(
            positions=put(positions),
            slots=put(blocks * BLOCK_SIZE + positions % BLOCK_SIZE),
            query_starts=put(query_starts),
            context_lens=put(torch.tensor(contexts)),
            block_tables=put(self._tables[seqs]),
            num_decodes=num_decodes,
            max_query_len=max(counts),
            max_context_len=max(contexts),
            first_whole=len(seqs),
            last_tokens=put(query_starts[1:] - 1) if only_last else None,
            host_query_lens=counts if on_cpu else None,
            host_context_lens=contexts if on_cpu else None,
        )
        token_ids = put(torch.tensor([token for tokens in chunks.values() for token in tokens]))
        logits = self.model.logits(self.model.forward(token_ids, inputs, self._caches))
        for s, n in zip(seqs, counts):
            self._lens[s] += n
        return dict(zip(seqs, logits.split(1 if only_last else counts)))
