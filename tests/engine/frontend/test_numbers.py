"""Whatever numbers a request brings: it is refused, or what crosses border 1 can be sent and fits the device."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from quire.engine.errors import InvalidRequestError
from quire.engine.frontend.submission import numbers, samples
from quire.engine.messages import Sampling
from quire.engine.sampling_params import SamplingParams

VOCABULARY = 1000
INTEGERS = ("n", "top_k", "seed", "max_tokens", "min_tokens", "logprobs")
FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
EDGES = [sign * (2**bits + more) for bits in (0, 31, 32, 63, 64, 100) for more in (-1, 0, 1) for sign in (1, -1)]
SMALL_AND_LARGE = [0.0, -0.0, 1e-320, 1e-300, 1e-40, 1e-10, 1e10, 1e40, 1e300, math.inf, -math.inf, math.nan]


def sampling_of(max_logprobs: int = -1, **params: Any) -> Sampling:
    checked = SamplingParams(**params)
    result = numbers(checked, 10, max_model_len=100, max_logprobs=max_logprobs, vocab_size=VOCABULARY,
                     eos_token_ids=(2,), clamp=True)
    msgspec.msgpack.encode((result, samples(checked, range(checked.n))))
    return result


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in INTEGERS for value in EDGES]
                         + [(name, value) for name in FLOATS for value in SMALL_AND_LARGE])
def test_a_number_is_refused_by_name_or_the_device_can_hold_it(name: str, value: float) -> None:
    refused = ""
    try:
        result = sampling_of(**{name: value})
    except InvalidRequestError as error:
        refused = error.param or "?"
    if refused:
        assert refused == name
        return
    for field in ("top_k", "max_tokens", "min_tokens", "logprobs"):
        np.array([getattr(result, field)], np.int32)
        assert getattr(result, field) <= VOCABULARY
    held = {field: float(np.float32(getattr(result, field))) for field in FLOATS}
    assert all(map(math.isfinite, held.values()))
    assert held["repetition_penalty"] > 0, "logits are divided by it"
    assert (held["temperature"] > 0) == (result.temperature > 0)


@pytest.mark.parametrize("top_k", [VOCABULARY, VOCABULARY + 1, 2**31 - 1])
def test_a_filter_that_keeps_everything_is_none(top_k: int) -> None:
    assert sampling_of(top_k=top_k).top_k == 0
    assert sampling_of(top_k=VOCABULARY - 1).top_k == VOCABULARY - 1


@pytest.mark.parametrize(("max_logprobs", "most"), [(-1, VOCABULARY), (20, 20), (2 * VOCABULARY, VOCABULARY)])
def test_no_more_alternatives_than_there_are_tokens(max_logprobs: int, most: int) -> None:
    assert sampling_of(max_logprobs, logprobs=most).logprobs == most
    with pytest.raises(InvalidRequestError, match=f"greater than max allowed: {most}$"):
        sampling_of(max_logprobs, logprobs=most + 1)
