"""Whether the model is here, and whether it fits: its weights and some KV cache against the memory that there is.

An estimate from file sizes and shapes, before anything is loaded: what steps need beside it is left out.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from quire.app.doctor.finding import Finding, fail, gib, ok, warn
from quire.app.doctor.gpu import Gpu
from quire.engine.config import DTYPES, EngineArgs, kv_type
from quire.engine.division import require_divisible
from quire.engine.errors import ConfigError, WeightError
from quire.engine.frontend.chat_template import load_chat_template
from quire.engine.host_memory import available_bytes
from quire.engine.memory_need import MemoryNeed
from quire.engine.model_config import ModelConfig
from quire.engine.quantization_config import FLOAT32, stays_packed
from quire.engine.tokenizers.tokenizer import load_tokenizer
from quire.engine.weights.locate import is_hub_model, resolve_model
from quire.engine.weights.size import kv_block_bytes, weight_bytes

SHORT_CONTEXT = 4096  # tokens; a cache that holds fewer serves no long prompt and few requests at once
_LESS = "a smaller model, --dtype half, or a shorter --max-model-len"


def check_model(args: EngineArgs, gpus: list[Gpu]) -> list[Finding]:
    """In a process that may not fetch (HF_HUB_OFFLINE). `gpus` are those that the engines take."""
    try:
        model = resolve_model(args)
    except ConfigError as error:
        if is_hub_model(args):
            return [warn("model", f"{args.model} is not on this disk; the first start would fetch it",
                         "fetch it now where that would take too long, or give a directory")]
        return _fails("model", error)
    packed = "" if model.quantization is None else f", its weights {model.quantization.says}"
    found = [ok("model", f"{model.architecture} at {model.path}{packed}")]
    for check in (args.model_len, partial(require_divisible, args)):
        try:
            check(model)
        except ConfigError as error:
            found += _fails("model", error)
    on_gpu = bool(gpus) and args.device != "cpu"
    dtype = DTYPES[args.dtype]
    if dtype == "auto":
        dtype = model.dtype if on_gpu else "float32"
    try:
        kv = kv_type(args, dtype)
    except ConfigError as error:
        return [*found, *_fails("model", error)]
    try:
        tokenizer = None if args.skip_tokenizer_init else load_tokenizer(model, args.tokenizer)
        if args.chat_template is not None:
            load_chat_template(model, args.chat_template, tokenizer)
    except ConfigError as error:
        found += _fails("tokenizer", error)
    try:
        weights = weight_bytes(model, dtype, dummy=args.load_format == "dummy",
                               packed=stays_packed("cuda" if on_gpu else "cpu", args.quantization, model.file_format))
    except (WeightError, OSError) as error:
        return [*found, fail("model", str(error), "fetch the model again")]
    context = min(args.max_model_len or SHORT_CONTEXT, model.max_position_embeddings)
    blocks = args.cpu_block_need(model).blocks_for(context)
    token = -(-blocks * kv_block_bytes(model, kv, args.block_size) // context)
    if not on_gpu:
        available = available_bytes()
        found += check_cpu_weights(args.cpu_weights)
        if stays_packed("cpu", args.quantization, model.file_format):
            found.append(check_packed_weights())
        return [*found, check_host_memory(args, MemoryNeed.of(args, model, dtype, available), token, available)]
    share = args.num_ranks  # about: what every rank has whole is small
    return [*found, *(check_gpu_memory(args, model, weights // share, max(1, token // share), gpu) for gpu in gpus)]


def check_cpu_weights(form: str) -> list[Finding]:
    """Asks in a process of its own whether this machine's operators for the form are right: it loads torch."""
    if form == FLOAT32:
        return []
    asks = "import sys; from quire.engine.quantization.cpu_product import require; require(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", asks, form], capture_output=True, text=True, check=False)
    if done.returncode:
        says = (done.stderr.strip().splitlines() or ["no reason given"])[-1].partition("Error: ")
        return [fail("CPU weights", says[2] or says[0], f"leave --cpu-weights out: {FLOAT32} runs everywhere")]
    return [ok("CPU weights", f"{form}, by FBGEMM's products, found right on this machine")]


def check_packed_weights() -> Finding:
    """Asks in a process of its own whether this machine can multiply with weights as they are packed."""
    asks = "from quire.engine.quantization.cpu_packed_product import why_not; print(why_not())"
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=False)
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1] if done.returncode else done.stdout.strip()
    if reason:
        return warn("packed weights", f"made floats at every step, many times slower: {reason}",
                    "install gcc, or leave --quantization out: weights then become floats as they are read")
    return ok("packed weights", "whole numbers of 4 and 8 bits are multiplied as they are packed, by a product "
              "compiled and tried here; small floats and nf4 are made floats at every step, many times slower")


def _fails(check: str, error: ConfigError) -> list[Finding]:
    return [fail(check, problem, "see the flag that it names" if problem.startswith("--") else "take another model")
            for problem in error.problems]


def check_gpu_memory(args: EngineArgs, model: ModelConfig, weights: int, token_bytes: int, gpu: Gpu) -> Finding:
    share = int(gpu.total_bytes * args.gpu_memory_utilization)
    usable = min(share, gpu.free_bytes)
    of = f"{gib(usable)} of GPU {gpu.index}"
    if usable < share:
        of += f" ({gib(gpu.total_bytes - gpu.free_bytes)} are taken by others)"
    left = args.kv_cache_memory_bytes or usable - weights
    says = f"weights {gib(weights)} in {of}, which leaves {gib(max(0, left))} for KV cache"
    if weights >= usable or left > gpu.free_bytes - weights:
        return fail("GPU memory", says, f"free the GPU (nvidia-smi tells who has it), or take {_less(args)}")
    return _check_context("GPU memory", says, left // token_bytes, args.max_model_len,
                          min(model.max_position_embeddings, SHORT_CONTEXT))


def check_host_memory(args: EngineArgs, need: MemoryNeed, token_bytes: int, available: int) -> Finding:
    """As each engine asks when it starts, and for all of them together."""
    says = f"weights {gib(need.weights)} and {gib(need.cache)} of KV cache in {gib(available)} of free memory"
    if args.data_parallel_size > 1:
        says = f"{args.data_parallel_size} times {says}"
    if args.data_parallel_size * need.total > available:
        return fail("memory", says, f"free memory or raise the container's limit, or take {_less(args)}")
    return _check_context("memory", says, need.cache // token_bytes, args.max_model_len, 1)


def _less(args: EngineArgs) -> str:
    return _LESS if args.kv_cache_memory_bytes is None else (
        "fewer --kv-cache-memory-bytes, a smaller model, or --dtype half")


def _check_context(check: str, says: str, tokens: int, wanted: int | None, enough: int) -> Finding:
    says += f" (about {tokens} tokens)"
    if wanted is not None and tokens < wanted:
        return fail(check, f"{says}, less than --max-model-len {wanted}",
                    "take a shorter --max-model-len, or more with --kv-cache-memory-bytes")
    if tokens < enough:
        return warn(check, says, f"there is room for few requests; take {_LESS}")
    return ok(check, says)
