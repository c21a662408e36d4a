"""The inputs of one step, gathered from the request table by row number.

`pack` runs on the host and only needs the plan; `gather` runs on the device after the upload. Token values are never
touched by the host: also a token sampled one step ago is read from the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from engine.attention.inputs import AttentionInputs
from engine.execution.request_table import RequestTable
from engine.execution.upload import Upload
from engine.plan import StepPlan


@dataclass(slots=True)
class Batch:
    token_ids: torch.Tensor  # [tokens] int32
    inputs: AttentionInputs
    last_tokens: torch.Tensor  # [samples] int32, place in the flat batch of each sampling row's last token
    sample_rows: torch.Tensor  # [samples] int32
    sample_positions: torch.Tensor  # [samples] int32, where the sampled token goes


def pack(plan: StepPlan, upload: Upload) -> None:
    rows = np.array(plan.rows, np.int32)
    starts = np.array(plan.starts, np.int32)
    lengths = np.array(plan.num_tokens, np.int32)
    query_starts = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(lengths, out=query_starts[1:])
    if plan.num_decodes == len(rows):
        token_rows, positions = rows, starts
    else:
        token_rows = np.repeat(rows, lengths)
        # 0, 1, 2, ... within each sequence, plus its start
        positions = np.arange(query_starts[-1], dtype=np.int32) + np.repeat(starts - query_starts[:-1], lengths)
    samples = np.array(plan.samples, bool)
    upload.add("rows", rows)
    upload.add("query_starts", query_starts)
    upload.add("context_lens", starts + lengths)
    upload.add("token_rows", token_rows)
    upload.add("positions", positions.astype(np.int32, copy=False))
    upload.add("last_tokens", (query_starts[1:] - 1)[samples])
    upload.add("sample_rows", rows[samples])
    upload.add("sample_positions", (starts + lengths)[samples])


def gather(plan: StepPlan, upload: Upload, table: RequestTable, block_size: int, *, host_lists: bool) -> Batch:
    positions, token_rows = upload["positions"], upload["token_rows"]
    ends = [s + n for s, n in zip(plan.starts, plan.num_tokens)]
    max_context_len = max(ends)
    max_blocks = -(-max_context_len // block_size)
    inputs = AttentionInputs(
        positions=positions,
        slots=slots_of(table, token_rows, positions, block_size),
        query_starts=upload["query_starts"],
        context_lens=upload["context_lens"],
        block_tables=table.block_tables[:, :max_blocks].index_select(0, upload["rows"]),
        num_decodes=plan.num_decodes,
        max_query_len=max(plan.num_tokens),
        max_context_len=max_context_len,
        host_query_lens=plan.num_tokens if host_lists else None,
        host_context_lens=ends if host_lists else None,
    )
    return Batch(
        token_ids=table.tokens[token_rows, positions],
        inputs=inputs,
        last_tokens=upload["last_tokens"],
        sample_rows=upload["sample_rows"],
        sample_positions=upload["sample_positions"],
    )


def slots_of(table: RequestTable, rows: torch.Tensor, positions: torch.Tensor, block_size: int) -> torch.Tensor:
    """The KV slot of each token. [tokens] int32"""
    blocks = table.block_tables[rows, positions // block_size]
    return blocks * block_size + positions % block_size
