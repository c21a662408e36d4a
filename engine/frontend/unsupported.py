"""vLLM's arguments of an engine that this version does not implement. Programs pass their defaults all the same: each
is taken at the values that ask for nothing, and refused by name at any other. Called by `llm` and `async_llm`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from quire.engine.arguments import asks_for_nothing, shown
from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError

# None asks for nothing everywhere.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "runner": ("auto", "generate"), "convert": ("auto", "none"), "tokenizer_mode": ("auto", "hf"),
    "tokenizer_revision": (), "code_revision": (), "hf_token": (), "hf_config_path": (), "hf_overrides": ({},),
    "config_format": ("auto", "hf"), "model_impl": ("auto", "vllm"), "download_dir": (), "ignore_patterns": (),
    "model_loader_extra_config": ({},), "safetensors_load_strategy": (), "override_generation_config": ({},),
    "quantization": (), "quantization_config": (), "kv_cache_dtype": ("auto",), "cpu_offload_gb": (0, 0.0),
    "offload_backend": ("auto",), "kv_offloading_size": (), "logits_processors": ([],),
    "logprobs_mode": ("raw_logprobs",), "structured_outputs_config": ({},), "reasoning_parser": ("",),
    "pooler_config": (), "enable_prompt_embeds": (False,), "enable_lora": (False,), "speculative_config": (),
    "spec_method": (), "spec_model": (), "spec_tokens": (), "enable_return_routed_experts": (False,),
    "return_sampling_mask": (False,), "allowed_local_media_path": ("",), "allowed_media_domains": (),
    "limit_mm_per_prompt": ({},), "mm_processor_kwargs": ({},), "compilation_config": ({},), "attention_config": ({},),
    "attention_backend": (), "optimization_level": (), "performance_mode": ("balanced",), "profiler_config": (),
    "disable_custom_all_reduce": (False,), "enable_expert_parallel": (False,), "nnodes": (1,), "node_rank": (0,),
    "decode_context_parallel_size": (1,), "prefill_context_parallel_size": (1,), "worker_cls": ("auto",),
    "worker_extension_cls": ("",), "enable_chunked_prefill": (True,), "long_prefill_token_threshold": (0,),
    "scheduling_policy": ("fcfs", "priority"),  # requests of one priority are served as they come, in both
    "prefix_caching_hash_algo": ("sha256",), "stream_interval": (1,), "disable_log_stats": (True, False),
    "kv_transfer_config": (), "kv_events_config": (), "enable_sleep_mode": (False,), "disable_sliding_window": (False,),
    # Of older versions.
    "task": ("auto", "generate"), "swap_space": (0, 4, 0.0, 4.0), "max_seq_len_to_capture": (8192,),
    "disable_async_output_proc": (False,), "num_scheduler_steps": (1,), "use_v2_block_manager": (True,),
    "disable_log_requests": (True, False), "enable_log_requests": (False,), "engine_use_ray": (False,),
    "worker_use_ray": (False,), "rope_scaling": (), "rope_theta": (), "max_lora_rank": (16,), "max_loras": (1,),
    "use_tqdm_on_load": (True, False), "served_model_name": (),
    "override_pooler_config": (), "guided_decoding_backend": ("auto", "xgrammar"),
}


def asked_for(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those that ask for something, for `EngineArgs` to take or refuse.

    Raises:
        ConfigError: this version does not implement some of them; all of these are named.
    """
    problems = [f"{name}: {shown(value)} is not supported by this version; leave it out"
                for name, value in arguments.items()
                if name in _NEUTRAL and not asks_for_nothing(value, _NEUTRAL[name])]
    if problems:
        raise ConfigError(problems)
    known = {field.name for field in fields(EngineArgs)}
    return {name: value for name, value in arguments.items()
            if name not in _NEUTRAL and (value is not None or name not in known)}
