"""The inputs of one step, gathered from the request table by row number.

`pack` runs on the host and only needs the plan; `gather` runs on the device after the upload. Token values are never
touched by the host: also a token sampled one step ago is read from the table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.attention.media import StepFeatures
from quire.engine.execution import pooled_rows
from quire.engine.execution.request_table import RequestTable
from quire.engine.execution.upload import Upload
from quire.engine.plan import StepPlan
from quire.kernels import ops


def pack(plan: StepPlan, upload: Upload) -> None:
    rows = np.array(plan.rows, np.int32)
    starts = np.array(plan.starts, np.int32)
    lengths = np.array(plan.num_tokens, np.int32)
    query_starts = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(lengths, out=query_starts[1:])
    token_rows, positions = token_positions(rows, starts, lengths)
    upload.add("rows", rows)
    upload.add("query_starts", query_starts)
    upload.add("context_lens", starts + lengths)
    upload.add("token_rows", token_rows)
    upload.add("positions", positions)
    if not plan.only_decodes:
        upload.add("last_tokens", query_starts[1:] - 1)
    if not all(plan.samples):
        upload.add("sample_places", np.flatnonzero(plan.samples).astype(np.int32))
    if plan.told_places:
        upload.add("told_prompts", _told(plan, query_starts))
    if plan.pooled_places:
        pooled_rows.pack(plan, upload)
    if plan.shared_places:
        shared = np.zeros((2, plan.num_decodes), np.int32)  # lengths, members
        shared[0, plan.shared_places] = plan.num_shared_tokens
        shared[1] = -1
        shared[1, :len(plan.shared_places)] = plan.shared_places
        upload.add("shared", shared)


def _told(plan: StepPlan, query_starts: np.ndarray) -> np.ndarray:
    """[3, tokens]: which of the step's tokens tells of it, its row and its position."""
    columns = [np.stack([np.arange(n, dtype=np.int32) + (query_starts[place] + first - 1 - plan.starts[place]),
                         np.full(n, plan.rows[place], np.int32), np.arange(first, first + n, dtype=np.int32)])
               for place, first, n in zip(plan.told_places, plan.told_firsts, plan.told_counts)]
    return np.concatenate(columns, 1).astype(np.int32)


def pack_samples(plan: StepPlan, upload: Upload) -> None:
    """What the sampler needs of the rows that sample."""
    upload.add("sample_rows", np.array(plan.sampling_rows, np.int32))
    upload.add("sample_positions", np.array(plan.sampled_positions, np.int32))


def token_positions(rows: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and position of each token of sequences that lie one after the other."""
    first = np.cumsum(lengths) - lengths
    # 0, 1, 2, ... within each sequence, plus its start
    positions = np.arange(int(lengths.sum()), dtype=np.int32) + np.repeat(starts - first, lengths)
    return np.repeat(rows, lengths), positions.astype(np.int32, copy=False)


def gather(plan: StepPlan, upload: Upload, table: RequestTable, block_size: int, *, host_lists: bool,
           advances: Callable[[], None] | None = None, angles: torch.Tensor | None = None,
           media: StepFeatures | None = None) -> tuple[torch.Tensor, AttentionInputs]:
    """Token ids [tokens] int32, and what attention needs to know; `angles` and `media` are of a step with images."""
    ends = plan.ends
    max_context_len = max(ends)
    max_blocks = -(-max_context_len // block_size)
    step = ops.gather_step(upload["rows"], upload["context_lens"], upload["token_rows"], upload["positions"],
                           table.tokens, table.block_tables[:, :, :max_blocks], table.floats, table.top_k, table.seeds,
                           block_size, table.deltas)
    positions = step.places
    if angles is not None:
        positions = torch.arange(len(angles), dtype=torch.int32, device=angles.device)
    inputs = AttentionInputs(
        positions=positions,
        slots=step.slots[0],
        query_starts=upload["query_starts"],
        context_lens=upload["context_lens"],
        block_tables=step.block_tables[0],
        num_decodes=plan.num_decodes,
        max_query_len=plan.max_query_len,
        max_context_len=max_context_len,
        first_whole=max((place + 1 for place, start in enumerate(plan.starts) if start), default=0),
        last_tokens=None if plan.only_decodes or plan.needs_all_tokens else upload["last_tokens"],
        shared=(upload["shared"][0], upload["shared"][1]) if plan.shared_places else None,
        host_query_lens=plan.num_tokens if host_lists else None,
        host_context_lens=ends if host_lists else None,
        angles=angles,
        media=media,
        advances=advances,
    )
    return step.token_ids, inputs.of_groups(step.slots, step.block_tables)
