"""vLLM's arguments that Quire does not have under that name, and what becomes of each: one table for Python, the
command line and the settings file. docs/from-vllm.md shows it.

Each is taken at the values that ask for nothing. At any other it is either refused, because a reply or a limit would
not be what was asked for, or passed over with a warning, because it only says how fast or how loud.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quire.engine.arguments import asks_for_nothing, shown

# The same thing under Quire's name.
OTHER_NAMES = {
    "max_num_queued_reqs": "max_queued_requests",
    "max_num_queued_tokens": "max_queued_tokens",
    "kv_cache_memory": "kv_cache_memory_bytes",
    "disable_uvicorn_access_log": "disable_access_log",
    "h11_max_incomplete_event_size": "max_header_bytes",
    "h11_max_header_count": "max_headers",
}
# Switches of vLLM's that turn off what Quire's of this name turns on.
NEGATED = {"disable_fastapi_docs": "docs"}

# Values of arguments that Quire has too, by which vLLM means the same as leaving them out.
AS_IF_UNSET: dict[str, tuple[Any, ...]] = {"max_model_len": (-1, "-1", "auto"),
                                           "distributed_executor_backend": ("uni",), "quantization": ("",)}


@dataclass(frozen=True)
class Foreign:
    """One argument: `says` is why Quire has none and what to do instead; None asks for nothing in every one."""

    says: str
    neutral: tuple[Any, ...] = ()
    refused: bool = True
    takes: str = "value"  # on a command line: "value", "values" or "switch"
    short: str = ""
    of_server: bool = False  # a flag of `vllm serve` alone, not an argument in Python

    def problem(self, name: str, value: Any) -> str | None:
        """Why `value` is refused, if it is. `name` as it was written."""
        if not self.refused or asks_for_nothing(value, self.neutral):
            return None
        return f"{name}: {shown(value)} is not supported by this version: {self.says}"

    def warning(self, name: str, value: Any) -> str | None:
        """That `value` changes nothing, where somebody may have expected it to."""
        if self.refused or asks_for_nothing(value, self.neutral):
            return None
        return f"{name}: {shown(value)} has no effect: {self.says}"


def _no(says: str, *neutral: Any, short: str = "") -> Foreign:
    return Foreign(says, neutral, short=short)


def _no_switch(says: str, short: str = "") -> Foreign:
    return Foreign(says, (False,), takes="switch", short=short)


def _idle(says: str, *neutral: Any, short: str = "") -> Foreign:
    return Foreign(says, neutral, refused=False, short=short)


def _idle_switch(says: str, *neutral: bool, short: str = "") -> Foreign:
    return Foreign(says, neutral, refused=False, takes="switch", short=short)


_NO_LORA = "LoRA adapters are not there yet; merge the adapter into the model"
_NO_DRAFTS = "there is no speculative decoding yet; leave it out, replies are the same without it"
_ONE_RUNNER = "every model embeds, and generates where it has a head; none classifies or scores"
_POOLER = "how a model's embeddings are made is said by modules.json and 1_Pooling/config.json beside its weights"
_IMAGE_FILES = "an image is kept ready for as long as a request needs it, in --image-memory-bytes"
_EXPERTS = "each rank of --tensor-parallel-size has a part of every expert"
_TOOLS = "every request may have tools; the model's chat template says how it calls them"
_NO_TOOL_SERVER = "there are no tools of the server's own"
_NO_PLUGINS = "there are no plugins; --tool-call-parser and --reasoning-parser name what there is"
_ONE_GRAMMAR = "forms of outputs are followed by llguidance alone"
_NO_QUANTISED = "the checkpoint says how its weights are quantised; --quantization fp8 rounds floats as they are read"
_NO_SWAP = "KV blocks are never swapped to the host; a preempted request is computed again"
_NO_OFFLOAD = "weights and KV cache stay on the device; take a smaller model, --dtype half or --tensor-parallel-size"
_NO_TRANSFER = "KV cache and weights are not handed between servers"
_NO_MULTI_NODE = ("several machines are joined by Ray: --distributed-executor-backend ray with --tensor-parallel-size "
                  "or --pipeline-parallel-size; for more engines start more servers")
_ONE_BACKEND = "Quire chooses its own kernels, by device and shapes"
_GRAPHS = "nothing is compiled by torch, and the CUDA graphs choose their own sizes; --enforce-eager turns them off"
_PLUGINS = "Quire loads no code from outside"
_SCHEDULING = "the scheduler fills each step up to --max-num-batched-tokens, decodes first"
_HUB_FILES = "the files of one revision belong together; name it with --revision"
_ONE_LINE = "each request leaves one line without its texts; --log-content adds them, --disable-access-log drops it"
_CONFIG_JSON = "write it into the model's config.json"
_METRICS = "/metrics has all there is; see docs/observability.md"

_ENGINE: dict[str, Foreign] = {
    # The model and its files.
    "runner": _no(_ONE_RUNNER, "auto", "generate", "pooling"),
    "convert": _no(_ONE_RUNNER, "auto", "none", "embed"),
    "task": _no(_ONE_RUNNER, "auto", "generate", "embed", "embedding"),
    "pooler_config": _no(_POOLER, {}),
    "override_pooler_config": _no(_POOLER, {}),
    "tokenizer_mode": _no("tokenizer.json, tekken.json, tokenizer.model, vocab.json or the GGUF file decides", "auto",
                          "hf", "slow"),
    "tokenizer_revision": _no(_HUB_FILES),
    "code_revision": _no("Quire never runs code out of a checkpoint"),
    "hf_token": _no("set HF_TOKEN in the environment; flags can be seen by other users of the machine"),
    "hf_config_path": _no("config.json lies with the model", ""),
    "hf_overrides": _no(_CONFIG_JSON, {}),
    "rope_scaling": _no(_CONFIG_JSON, {}),
    "rope_theta": _no(_CONFIG_JSON),
    "config_format": _no("models are read in Hugging Face's layout or from a .gguf file", "auto", "hf"),
    "ignore_patterns": _idle("from a hub, only the files that are served are fetched"),
    "model_loader_extra_config": _no("there are no other loaders", {}),
    "safetensors_load_strategy": _idle("weights are read from mapped files, a tensor at a time"),
    "pt_load_map_location": _idle("pickles are read on the CPU, without running what they say"),
    "max_parallel_loading_workers": _idle("each rank reads its own share of the weights"),
    "use_tqdm_on_load": _idle_switch("a bar is shown on a terminal, and log lines elsewhere", True, False),
    "override_generation_config": _no("send sampling parameters with requests, or edit generation_config.json", {}),
    "quantization_config": _no(_NO_QUANTISED, {}),
    "quantization_param_path": _no(_NO_QUANTISED),
    "disable_sliding_window": _idle_switch("a window belongs to its model; --max-model-len keeps requests within it",
                                           False),
    # Memory and the KV cache.
    "kv_cache_dtype_skip_layers": Foreign("all layers' K and V are of one type", takes="values"),
    "calculate_kv_scales": _no_switch("the checkpoint's scales count: measured on a first request, they would make "
                                      "replies depend on it; fp8_e5m2 needs none"),
    "kv_sharing_fast_prefill": _idle_switch(_SCHEDULING, False),
    "cpu_offload_gb": _no(_NO_OFFLOAD, 0, 0.0),
    "cpu_offload_params": _no(_NO_OFFLOAD),
    "offload_backend": _no(_NO_OFFLOAD, "auto"),
    "offload_group_size": _idle(_NO_OFFLOAD, 0),
    "offload_num_in_group": _idle(_NO_OFFLOAD, 1),
    "offload_prefetch_step": _idle(_NO_OFFLOAD, 1),
    "offload_params": _no(_NO_OFFLOAD),
    "kv_offloading_size": _no(_NO_OFFLOAD, 0, 0.0),
    "kv_offloading_backend": _idle(_NO_OFFLOAD, "native"),
    "swap_space": _idle(_NO_SWAP, 0, 4, 0.0, 4.0),
    "preemption_mode": _idle(_NO_SWAP),
    "prefix_caching_hash_algo": _idle("blocks are named by BLAKE2b hashes", "sha256"),
    "disable_hybrid_kv_cache_manager": _idle_switch("all layers share one pool of blocks"),
    "kv_transfer_config": _no(_NO_TRANSFER),
    "kv_events_config": _no(_NO_TRANSFER),
    "ec_transfer_config": _no(_NO_TRANSFER),
    "weight_transfer_config": _no(_NO_TRANSFER),
    "enable_sleep_mode": _no_switch("a server holds its memory until it ends; stop it instead"),
    # Scheduling.
    "enable_chunked_prefill": _idle_switch("prompts are always computed in pieces", True),
    "long_prefill_token_threshold": _idle(_SCHEDULING, 0),
    "max_num_partial_prefills": _idle(_SCHEDULING, 1),
    "max_long_partial_prefills": _idle(_SCHEDULING, 1),
    "scheduling_policy": _no("requests go by priority, and within one as they come", "fcfs", "priority"),
    "scheduler_reserve_full_isl": _idle_switch(_SCHEDULING, True),
    "scheduler_delay_factor": _idle(_SCHEDULING, 0, 0.0),
    "scheduler_cls": _no(_PLUGINS),
    "watermark": _idle(_SCHEDULING, 0, 0.0),
    "num_scheduler_steps": _idle("each step is planned while the one before it runs", 1),
    "num_lookahead_slots": _idle(_NO_DRAFTS, 0),
    "multi_step_stream_outputs": _idle_switch("tokens are sent as they are sampled", True),
    "stream_interval": _idle("tokens are sent as they are sampled", 1),
    "disable_async_output_proc": _idle_switch("each step is planned while the one before it runs", False),
    "use_v2_block_manager": _idle_switch("there is one manager of blocks", True),
    # How it computes.
    "max_seq_len_to_capture": _idle(_GRAPHS, 8192),
    "compilation_config": _idle(_GRAPHS, {}, short="-cc"),
    "optimization_level": _idle(_GRAPHS, short="-O"),
    "cudagraph_capture_sizes": Foreign(_GRAPHS, refused=False, takes="values"),
    "max_cudagraph_capture_size": _idle(_GRAPHS),
    "performance_mode": _idle("the limits of a step are --max-num-seqs and --max-num-batched-tokens", "balanced"),
    "attention_backend": _idle(_ONE_BACKEND),
    "attention_config": _idle(_ONE_BACKEND, {}, short="-ac"),
    "moe_backend": _idle(_EXPERTS, "auto"),
    "linear_backend": _idle(_ONE_BACKEND, "auto"),
    "disable_cascade_attn": _idle_switch("blocks that many samples share are read once for all of them", True),
    "disable_custom_all_reduce": _idle_switch(_ONE_BACKEND, False),
    "enable_dbo": _idle_switch(_EXPERTS, False),
    "speculative_config": _no(_NO_DRAFTS, {}, short="-sc"),
    "spec_method": _no(_NO_DRAFTS),
    "spec_model": _no(_NO_DRAFTS),
    "spec_tokens": _no(_NO_DRAFTS),
    "logprobs_mode": _no("logprobs are of the model's own distribution", "raw_logprobs"),
    "logits_processors": Foreign(_PLUGINS, ([],), takes="values"),
    "enable_prompt_embeds": _no_switch("prompts are text or token ids"),
    "enable_return_routed_experts": _no_switch(_EXPERTS),
    "return_sampling_mask": _no_switch("there is no such field in a reply"),
    # Devices and machines.
    "decode_context_parallel_size": _no("one context is held by one device", 1, short="-dcp"),
    "prefill_context_parallel_size": _no("one context is held by one device", 1, short="-pcp"),
    "enable_expert_parallel": _idle_switch(_EXPERTS, False, short="-ep"),
    "enable_eplb": _idle_switch(_EXPERTS, False),
    "eplb_config": _idle(_EXPERTS, {}),
    "all2all_backend": _idle(_EXPERTS),
    "nnodes": _no(_NO_MULTI_NODE, 1, short="-n"),
    "node_rank": _no(_NO_MULTI_NODE, 0, short="-r"),
    "master_addr": _no(_NO_MULTI_NODE, "127.0.0.1"),
    "master_port": _no(_NO_MULTI_NODE, 29501),
    "data_parallel_rank": _no(_NO_MULTI_NODE, short="-dpn"),
    "data_parallel_start_rank": _no(_NO_MULTI_NODE, short="-dpr"),
    "data_parallel_size_local": _no(_NO_MULTI_NODE, short="-dpl"),
    "data_parallel_address": _no(_NO_MULTI_NODE, "127.0.0.1", short="-dpa"),
    "data_parallel_rpc_port": _no(_NO_MULTI_NODE, short="-dpp"),
    "data_parallel_backend": _no(_NO_MULTI_NODE, "mp", short="-dpb"),
    "data_parallel_hybrid_lb": _no_switch(_NO_MULTI_NODE, short="-dph"),
    "data_parallel_external_lb": _no_switch(_NO_MULTI_NODE, short="-dpe"),
    "data_parallel_multi_port_external_lb": _no_switch(_NO_MULTI_NODE),
    "device_ids": Foreign("choose the GPUs with CUDA_VISIBLE_DEVICES", takes="values"),
    "numa_bind": _no_switch("start the server under numactl"),
    "distributed_timeout_seconds": _idle("a rank that is lost is noticed at once"),
    "engine_use_ray": _no_switch("--distributed-executor-backend ray places the devices' processes"),
    "worker_use_ray": _no_switch("--distributed-executor-backend ray places the devices' processes"),
    "ray_workers_use_nsight": _no_switch("start the server under the profiler instead"),
    "worker_cls": _no(_PLUGINS, "auto"),
    "worker_extension_cls": _no(_PLUGINS, ""),
    "additional_config": _no(_PLUGINS, {}),
    # What is not there yet.
    "enable_lora": _no_switch(_NO_LORA),
    "max_loras": _idle(_NO_LORA, 1),
    "max_lora_rank": _idle(_NO_LORA, 16),
    "max_cpu_loras": _idle(_NO_LORA),
    "lora_dtype": _idle(_NO_LORA, "auto"),
    "lora_extra_vocab_size": _idle(_NO_LORA, 256),
    "lora_target_modules": Foreign(_NO_LORA, refused=False, takes="values"),
    "fully_sharded_loras": _idle_switch(_NO_LORA, False),
    "enable_prompt_adapter": _no_switch("prompt adapters are not there"),
    "structured_outputs_config": _idle(_ONE_GRAMMAR, {}),
    "guided_decoding_backend": _idle(_ONE_GRAMMAR, "auto", "guidance", "xgrammar"),
    "reasoning_parser_plugin": _no(_NO_PLUGINS, ""),
    "media_io_kwargs": _idle("they are of videos, which this version does not take", {}),
    "enable_mm_embeds": _no_switch("send the image itself"),
    "mm_processor_cache_gb": _idle(_IMAGE_FILES, 0, 4, 0.0, 4.0),
    "mm_processor_cache_type": _idle(_IMAGE_FILES, "lru"),
    "mm_encoder_tp_mode": _idle("each device encodes all images", "weights", "data"),
    "disable_mm_preprocessor_cache": _idle_switch(_IMAGE_FILES, True, False),
    "interleave_mm_strings": _idle_switch("images stand where their parts stand among the texts", False),
    "skip_mm_profiling": _idle_switch("start-up measures the memory of images in its own way", True, False),
    "language_model_only": _no_switch('--limit-mm-per-prompt {"image": 0} has the same effect'),
    # Logs, metrics, profiles.
    "disable_log_stats": _idle_switch(_METRICS, True, False),
    "disable_log_requests": _idle_switch(_ONE_LINE, True, False),
    "enable_log_requests": _idle_switch(_ONE_LINE, False),
    "collect_detailed_traces": Foreign("every trace has all its spans", refused=False, takes="values"),
    "kv_cache_metrics": _idle_switch(_METRICS, False),
    "kv_cache_metrics_sample": _idle(_METRICS, 0.01),
    "enable_mfu_metrics": _idle_switch(_METRICS, False),
    "cudagraph_metrics": _idle_switch(_METRICS, False),
    "show_hidden_metrics_for_version": _idle(_METRICS),
    "enable_layerwise_nvtx_tracing": _idle_switch("start the server under the profiler instead", False),
    "enable_logging_iteration_details": _idle_switch(_METRICS, False),
    "profiler_config": _no("there is no profiler inside; start the server under one"),
    "jit_monitor_mode": _idle("all kernels are compiled before the server is ready", "warn"),
}

_SERVER: dict[str, Foreign] = {
    "chat_template_content_format": _idle("the template itself tells in which form it reads contents", "auto"),
    "default_chat_template_kwargs": _no("send chat_template_kwargs with requests", {}),
    "trust_request_chat_template": _no_switch("the template is the server's; --chat-template replaces it"),
    "lora_modules": Foreign(_NO_LORA, takes="values"),
    "prompt_adapters": Foreign("prompt adapters are not there", takes="values"),
    "enable_auto_tool_choice": _idle_switch(_TOOLS, True, False),
    "tool_parser_plugin": _no(_NO_PLUGINS, ""),
    "tool_server": _no(_NO_TOOL_SERVER),
    "exclude_tools_when_tool_choice_none": _idle_switch("the prompt never has tools that may not be called", True,
                                                        False),
    "headless": _no_switch(_NO_MULTI_NODE),
    "grpc": _no_switch("Quire speaks HTTP only"),
    "middleware": Foreign(_PLUGINS, ([],), takes="values"),
    "enable_ssl_refresh": _idle_switch("certificates are always read again when they change", True, False),
    "enable_server_load_tracking": _idle_switch(_METRICS, False),
    "enable_prompt_tokens_details": _idle_switch("usage always has prompt_tokens_details", True),
    "enable_force_include_usage": _no_switch("send stream_options.include_usage with the request"),
    "enable_per_request_metrics": _no_switch("/metrics and the request's log line have the times"),
    "enable_tokenizer_info_endpoint": _no_switch("there is no such endpoint"),
    "return_tokens_as_token_ids": _no_switch("logprobs name tokens by their text; /tokenize gives ids"),
    "fingerprint_mode": _idle("system_fingerprint is null"),
    "enable_log_outputs": _idle_switch(_ONE_LINE, False),
    "enable_log_deltas": _idle_switch(_ONE_LINE, True, False),
    "max_log_len": _idle(_ONE_LINE),
    "enable_offline_docs": _idle_switch("/docs never asks other hosts for anything", True, False),
    "uvicorn_log_level": _idle("--log-level sets it for all of the server", "info"),
    "disable_access_log_for_endpoints": _idle("probes and scrapes leave no line; --disable-access-log drops all"),
    "log_config_file": _no("logs are JSON lines on standard error; --log-level sets how many"),
    "log_error_stack": _idle_switch("the log always has the stack of an error that nobody foresaw", True, False),
    "disable_frontend_multiprocessing": _idle_switch("HTTP and engine are always processes of their own", False),
}

VLLM_ARGUMENTS: dict[str, Foreign] = _ENGINE | {
    name: Foreign(row.says, row.neutral, row.refused, row.takes, row.short, of_server=True)
    for name, row in _SERVER.items()}
