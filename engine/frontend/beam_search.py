"""`LLM.beam_search` in vLLM's words: its parameters, and its outputs with the prompt in front. Used by llm.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from quire.engine.arguments import integer
from quire.engine.errors import InvalidRequestError
from quire.engine.frontend.outputs import CompletionOutput, Logprob, RequestOutput
from quire.engine.sampling_params import MAX_N, SamplingParams
from quire.engine.structured_outputs import StructuredOutputsParams
from quire.engine.tokenizers.tokenizer import Tokenizer


@dataclass(slots=True)
class BeamSearchParams:
    """A beam search that gives all its `beam_width` best sequences. The last two fields are Quire's own.

    Raises InvalidRequestError when it is used, for the values that `SamplingParams` refuses.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    skip_special_tokens: bool = True
    early_stopping: bool | str = False  # or "never"
    length_counts_prompt: bool = False

    def sampling_params(self) -> SamplingParams:
        return SamplingParams(
            n=self.beam_width, use_beam_search=True, max_tokens=self.max_tokens, ignore_eos=self.ignore_eos,
            temperature=self.temperature, length_penalty=self.length_penalty, early_stopping=self.early_stopping,
            include_stop_str_in_output=self.include_stop_str_in_output, structured_outputs=self.structured_outputs,
            skip_special_tokens=self.skip_special_tokens, length_counts_prompt=self.length_counts_prompt, logprobs=0,
            detokenize=False)


@dataclass(slots=True)
class BeamSearchSequence:
    """`tokens` and `text` begin with the prompt; a stop token that ended the sequence is the last of `tokens`."""

    tokens: list[int]
    logprobs: list[dict[int, Logprob]]  # of each token of the output, its own alone
    lora_request: Any = None
    cum_logprob: float = 0.0  # the sum over the output; not divided by any length
    text: str | None = None  # None where the engine has no tokenizer
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    sequences: list[BeamSearchSequence]  # best first


def checked(params: Any) -> BeamSearchParams:
    if not isinstance(params, BeamSearchParams):
        raise InvalidRequestError(f"params must be BeamSearchParams, got {type(params).__name__}.", "params")
    integer("beam_width", params.beam_width, 1, MAX_N)
    return params


def beam_search_output(output: RequestOutput, params: BeamSearchParams, tokenizer: Tokenizer | None,
                       end_token_ids: Iterable[int]) -> BeamSearchOutput:
    """`end_token_ids`: those that are not shown where they ended a sequence."""
    prompt, ends = output.prompt_token_ids or [], set(end_token_ids)
    return BeamSearchOutput([_sequence(prompt, sample, params, tokenizer, ends) for sample in output.outputs])


def _sequence(prompt: list[int], sample: CompletionOutput, params: BeamSearchParams, tokenizer: Tokenizer | None,
              ends: set[int]) -> BeamSearchSequence:
    tokens = prompt + sample.token_ids
    text = None
    if tokenizer is not None:
        hidden = sample.finish_reason == "stop" and tokens[-1] in ends and not params.include_stop_str_in_output
        text = tokenizer.decode(tokens[:-1] if hidden else tokens, params.skip_special_tokens)
    assert sample.cumulative_logprob is not None
    return BeamSearchSequence(tokens, sample.logprobs or [], None, sample.cumulative_logprob, text,
                              sample.finish_reason, sample.stop_reason)
