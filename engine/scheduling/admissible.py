"""Which requests could be finished if they had the engine to themselves. Called by `scheduler`."""

from __future__ import annotations

from quire.engine.config import SchedulerConfig
from quire.engine.errors import InvalidRequestError, context_length_error


def check_admissible(config: SchedulerConfig, num_prompt_tokens: int, max_tokens: int, num_output_tokens: int,
                     num_beams: int) -> None:
    """`max_tokens` is 0 of a prompt that is pooled, which may take all of the context; `num_output_tokens` are there
    already; `num_beams` is 0 of what is no beam search.

    Raises:
        InvalidRequestError: the request could never be finished, and why.
    """
    limit = config.max_model_len
    if num_prompt_tokens < 1:
        raise InvalidRequestError("The prompt must contain at least one token.", "prompt")
    if num_prompt_tokens > limit - (max_tokens > 0):
        raise context_length_error(limit, num_prompt_tokens, max_tokens)
    total = min(num_prompt_tokens + max_tokens, limit)
    if config.block_need.blocks_for(total) > config.num_blocks:
        capacity = config.block_need.room(config.num_blocks)
        raise InvalidRequestError(
            f"The prompt's {num_prompt_tokens} tokens and {total - num_prompt_tokens} output tokens need {total} "
            f"places in the KV cache, which has {capacity}. Reduce the prompt or max_tokens, or start the server "
            "with more cache (--gpu-memory-utilization or --kv-cache-memory-bytes).", "max_tokens")
    if max_tokens and num_prompt_tokens + num_output_tokens >= total:
        raise InvalidRequestError(
            f"Nothing is left to generate: {num_output_tokens} output tokens are given, and the limit is "
            f"{total - num_prompt_tokens}.", "max_tokens")
    if num_beams:
        _check_beams(config, num_beams, num_prompt_tokens, total)


def _check_beams(config: SchedulerConfig, width: int, num_prompt_tokens: int, total: int) -> None:
    if width > config.max_num_seqs:
        raise InvalidRequestError(f"A beam search of {width} beams needs as many samples to run at once; this "
                                  f"engine runs at most {config.max_num_seqs} (--max-num-seqs).", "best_of")
    num_blocks = config.block_need.blocks_for_beams(width, num_prompt_tokens, total)
    if num_blocks > config.num_blocks:
        raise InvalidRequestError(
            f"{width} beams of {total} tokens, which share the {num_prompt_tokens} of the prompt, may need "
            f"{num_blocks} blocks of the KV cache, which has {config.num_blocks}. Reduce the number of beams or "
            "max_tokens, or start the server with more cache (--gpu-memory-utilization or "
            "--kv-cache-memory-bytes).", "max_tokens")
