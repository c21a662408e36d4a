"""Processors against a plain model in numpy, in any company; what is drawn against the distribution that is left."""

from __future__ import annotations

import json
import math
from array import array
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.engine.execution.request_table import RequestTable
from quire.engine.execution.special_rows import SpecialRows
from quire.engine.execution.upload import Upload
from quire.engine.messages import Sampling
from quire.engine.plan import NOTHING_LEFT, NewRow, StepPlan
from quire.engine.sampling.grammar import Masks
from quire.engine.sampling.processor import processors
from quire.kernels import ops

VOCAB, LENGTH, NUM_DRAWS = 12, 40, 1000
CPU = torch.device("cpu")
IDS = st.integers(0, VOCAB - 1)


def packed(kind: str, values: Any) -> bytes:
    return array(kind, values).tobytes()


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    """Of a row that asks for some of all that there is, or for nothing."""
    def maybe(strategy: st.SearchStrategy[Any], neutral: Any) -> Any:
        return draw(st.one_of(st.just(neutral), strategy))

    biases = maybe(st.dictionaries(IDS, st.floats(-5, 5, width=32), min_size=1, max_size=5), {})
    allowed = maybe(st.lists(IDS, min_size=1, unique=True), [])
    grammar = maybe(st.tuples(st.lists(IDS, unique=True), st.booleans()).map(json.dumps), "")
    return Sampling(
        temperature=draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])), top_k=maybe(st.integers(1, VOCAB), 0),
        top_p=maybe(st.floats(0.1, 1.0), 1.0), min_p=maybe(st.floats(0.0, 0.5), 0.0),
        repetition_penalty=maybe(st.floats(0.5, 2.0), 1.0), presence_penalty=maybe(st.floats(-2, 2), 0.0),
        frequency_penalty=maybe(st.floats(-2, 2), 0.0), min_tokens=draw(st.integers(0, 6)),
        stop_token_ids=tuple(draw(st.lists(IDS, max_size=3, unique=True))),
        allowed_token_ids=packed("i", allowed), logit_bias_ids=packed("i", biases),
        logit_biases=packed("f", biases.values()), logprobs=draw(st.sampled_from([-1, -1, 0, 3])),
        grammar=grammar,
        bad_words=tuple(map(tuple, maybe(st.lists(st.lists(IDS, min_size=1, max_size=4), min_size=1, max_size=5), []))))


def masks(samplings: list[Sampling]) -> Masks:
    """What rows' grammars allow: in these tests, what their text says."""
    each = [json.loads(sampling.grammar) for sampling in samplings]
    bits = [[sum(1 << token for token in allowed)] for allowed, _ in each]
    return Masks(torch.tensor(bits, dtype=torch.int32).reshape(-1, 1),
                 [must_end for _, must_end in each])


Row = tuple[Sampling, list[int], int]  # with its tokens, and how many of them are its prompt
ROWS = st.lists(st.tuples(samplings(), st.lists(IDS, min_size=1, max_size=LENGTH - 1), st.integers(1, 20)), min_size=1,
                max_size=6).map(lambda rows: [(s, tokens, min(n, len(tokens))) for s, tokens, n in rows])


def plainly(logits: np.ndarray, sampling: Sampling, tokens: list[int], num_prompt: int) -> np.ndarray:
    """The logits that are drawn from, before temperature and filters."""
    left = logits.astype(np.float64).copy()
    output = tokens[num_prompt:]
    may_be_too_short = False
    if sampling.grammar:
        possible, may_be_too_short = json.loads(sampling.grammar)
        left[np.setdiff1d(np.arange(VOCAB), possible)] = -np.inf
    allowed = np.frombuffer(sampling.allowed_token_ids, np.int32)
    if len(allowed):
        left[np.setdiff1d(np.arange(VOCAB), allowed)] = -np.inf
    for *before, last in sampling.bad_words:
        if len(before) <= len(output) and output[len(output) - len(before):] == before:
            left[last] = -np.inf
    if len(output) < sampling.min_tokens and not may_be_too_short:
        left[list(sampling.stop_token_ids)] = -np.inf
    np.add.at(left, np.frombuffer(sampling.logit_bias_ids, np.int32), np.frombuffer(sampling.logit_biases, np.float32))
    for token in set(tokens):
        factor = sampling.repetition_penalty
        left[token] = left[token] / factor if left[token] > 0 else left[token] * factor
    for token in set(output):
        left[token] -= sampling.presence_penalty + sampling.frequency_penalty * output.count(token)
    return left


class Step:
    """One that samples for all rows, as ModelRunner carries it out on a CPU."""

    def __init__(self, rows: list[Row], seeds: list[int] | None = None) -> None:
        self.table = RequestTable.empty(len(rows), LENGTH, 4, CPU)
        new = [NewRow(i, tokens, num_prompt, sampling, seeds[i] if seeds else i)
               for i, (sampling, tokens, num_prompt) in enumerate(rows)]
        lengths = [len(tokens) for _, tokens, _ in rows]
        count = len(rows)
        self.plan = StepPlan(0, rows=list(range(count)), starts=[n - 1 for n in lengths], num_tokens=[1] * count,
                             samples=[True] * count, num_decodes=count, new_rows=new)
        self.upload = Upload()
        self.table.pack(self.plan, self.upload)
        self.special = SpecialRows(self.plan, self.table)
        self.special.pack(self.upload)
        self.upload.send(CPU)
        self.table.apply(self.plan, self.upload)
        self.masks = masks([sampling for sampling, _, _ in rows if sampling.grammar])

    def draw(self, logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        self.special.edit(logits, self.table)
        if self.special.has_grammars:
            self.special.mask(self.masks)
        return self.special.draw(token_ids, self.table)


def filtered(left: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The probabilities of what is left, float64."""
    z = left / sampling.temperature
    p = np.exp(z - z.max())
    kept = p >= sampling.min_p * p.max()
    if sampling.top_k:
        kept &= z >= np.sort(z)[-sampling.top_k]
    if sampling.top_p < 1:
        mass = np.where(kept, p, 0)
        more = np.array([mass[z > value].sum() for value in z])
        kept &= more < sampling.top_p * mass.sum()
    p = np.where(kept, p, 0)
    return p / p.sum()


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(0, 2**31))
def test_each_row_is_edited_as_if_it_were_alone_and_others_stay(rows: list[Row], seed: int) -> None:
    logits = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(seed))
    raw, step = logits.clone(), Step(rows)
    seen: list[torch.Tensor] = []
    own = [processor.acts for processor in processors()]
    drawn_by_the_graph = torch.full((len(rows),), 99, dtype=torch.int32)
    sample = ops.sample

    def noting(edited: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(edited.clone())
        return sample(edited, *args, **kwargs)

    ops.sample = noting
    try:
        token_ids = step.draw(logits, drawn_by_the_graph)
    finally:
        ops.sample = sample
    assert torch.equal(logits, raw), "logprobs are told of the raw ones"
    assert torch.equal(drawn_by_the_graph, torch.full((len(rows),), 99, dtype=torch.int32))
    edited = iter(seen[0]) if seen else iter(())
    for place, (sampling, tokens, num_prompt) in enumerate(rows):
        left = plainly(raw[place].numpy(), sampling, tokens, num_prompt)
        row = next((r for r in step.special._edited if step.special._places[r.place] == place), None)
        if row is None:
            assert np.array_equal(left, raw[place].numpy().astype(np.float64)), "nothing was asked that would edit it"
            assert token_ids[place] == 99
            continue
        assert sampling.grammar or any(acts(row) for acts in own)
        np.testing.assert_allclose(next(edited).numpy(), left, rtol=1e-5, atol=1e-5)
        if np.isneginf(left).all():
            assert token_ids[place] == NOTHING_LEFT
        else:
            assert left[token_ids[place]] > -np.inf
            assert step.table.tokens[place, len(tokens)] == token_ids[place]
        if sampling.temperature == 0 and not np.isneginf(left).all():
            assert left[token_ids[place]] > left.max() - 1e-4


DRAWN = given(samplings(), st.lists(IDS, min_size=2, max_size=12), st.integers(0, 2**31))


@settings(max_examples=40)
@DRAWN
def test_drawn_frequencies_follow_the_distribution_that_is_left(sampling: Sampling, tokens: list[int], seed: int
                                                                ) -> None:
    require_frequencies(sampling, tokens, seed)


@pytest.mark.slow
@settings(max_examples=200)
@DRAWN
def test_drawn_frequencies_follow_it_200_times(sampling: Sampling, tokens: list[int], seed: int) -> None:
    require_frequencies(sampling, tokens, seed)


def require_frequencies(sampling: Sampling, tokens: list[int], seed: int) -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2
    left = plainly(logits[0].numpy(), sampling, tokens, 1)
    if sampling.temperature == 0 or np.isneginf(left).all():
        return
    step = Step([(sampling, tokens, 1)] * NUM_DRAWS, seeds=[seed * 10_000 + i for i in range(NUM_DRAWS)])
    token_ids = step.draw(logits.expand(NUM_DRAWS, -1), torch.zeros(NUM_DRAWS, dtype=torch.int32))
    if not step.special._edited:
        return
    expected = filtered(left, sampling) * NUM_DRAWS
    found = np.bincount(token_ids.numpy(), minlength=VOCAB)
    assert found[expected == 0].sum() == 0
    rare = expected < 5
    pooled = [(found[~rare], expected[~rare]), (found[rare].sum(keepdims=True), expected[rare].sum(keepdims=True))]
    statistic = sum(((f - e) ** 2 / np.maximum(e, 1)).sum() for f, e in pooled)
    freedom = max(1, int((~rare).sum()))
    # Wilson and Hilferty's normal approximation; 200 of these, so a bound that one in a million passes.
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert z < 5, (found, expected)
