"""What a step reads of the request table, row by row and token by token. Called by quire.engine.execution.graphs
through quire.kernels.ops."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Gathered(NamedTuple):
    places: torch.Tensor  # [tokens] int32: positions plus their rows' deltas, 0 for padding
    slots: torch.Tensor  # [groups, tokens] int32: where in the KV cache; -1 for padding
    token_ids: torch.Tensor  # [tokens] int32
    block_tables: torch.Tensor  # [groups, seqs, blocks] int32; behind a context's last block, anything
    floats: torch.Tensor  # [numbers, seqs] float32
    top_k: torch.Tensor  # [seqs] int32
    seeds: torch.Tensor  # [seqs] int64


def gather_step(rows: torch.Tensor, context_lens: torch.Tensor, token_rows: torch.Tensor, positions: torch.Tensor,
                tokens: torch.Tensor, block_tables: torch.Tensor, floats: torch.Tensor, top_k: torch.Tensor,
                seeds: torch.Tensor, block_size: int, deltas: torch.Tensor | None = None) -> Gathered:
    """rows, context_lens: [seqs] int32; token_rows, positions: [tokens] int32, -1 = padding; the table: tokens [rows,
    positions] and block_tables [groups, rows, blocks] int32, floats [numbers, rows], top_k [rows], seeds [rows].
    deltas [rows] int32 (None: 0): what is added to positions before they turn q and k, as M-RoPE wants it."""
    places = positions.clamp(min=0)
    blocks = block_tables[:, token_rows, places // block_size]
    slots = torch.where(positions >= 0, blocks * block_size + places % block_size, -1).to(torch.int32)
    token_ids = tokens[token_rows, places]
    if deltas is not None:
        places = torch.where(positions >= 0, positions + deltas[token_rows], 0)
    return Gathered(places, slots, token_ids, block_tables.index_select(1, rows), floats[:, rows], top_k[rows],
                    seeds[rows])


def put_tokens(tokens: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor) -> None:
    """tokens[rows[i], positions[i]] = token_ids[i], where positions[i] >= 0."""
    inside = positions >= 0
    tokens[rows[inside], positions[inside]] = token_ids[inside]
