"""The engine on a CUDA device, with random checkpoints made on the spot. Run with `make test-gpu`.

Rounding takes away the reasons for an argmax, so tokens are compared through log-probabilities: along the tokens that
the engine chose, its log-probability of each is compared with transformers' float32 model, and must not be further off
than transformers' own model in the same dtype is, times FACTOR. It must also have chosen tokens that the float32 model
ranks within that distance of its best.
"""

from __future__ import annotations

import gc
import random
from pathlib import Path

import pytest
import torch

from quire import LLM, PoolingParams, SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

FACTOR = 2.0
FLOOR = {"bfloat16": 2e-2, "float16": 3e-3, "float32": 2e-3}  # below it, a ratio of two roundings says nothing
VOCAB = 4096
SHAPES = {
    "llama": {"num_attention_heads": 8, "num_key_value_heads": 8},
    "llama-gqa": {"num_attention_heads": 16, "num_key_value_heads": 4},
    "qwen2": {"num_attention_heads": 14, "num_key_value_heads": 2},
}


def make_checkpoint(directory: Path, shape: str) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    numbers = dict(vocab_size=VOCAB, hidden_size=64 * SHAPES[shape]["num_attention_heads"], intermediate_size=1536,
                   num_hidden_layers=4, max_position_embeddings=4096, rms_norm_eps=1e-6, initializer_range=0.05,
                   bos_token_id=1, eos_token_id=2, **SHAPES[shape])
    if shape == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**numbers))
        for layer in model.model.layers:  # transformers starts biases at zero, which would hide their absence
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                torch.nn.init.normal_(projection.bias, std=0.3)
    else:
        model = LlamaForCausalLM(LlamaConfig(**numbers))
    model.to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=list(SHAPES))
def checkpoint(request, tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(1)
    lengths = [1, 2, 15, 16, 17, 33, 64, 127, 300, 511, 1024, 1500]
    return [[rng.randrange(3, VOCAB) for _ in range(n)] for n in lengths]


def make(checkpoint: Path, dtype: str, **kwargs) -> LLM:
    return LLM(model=str(checkpoint), dtype=dtype, kv_cache_memory_bytes=1 << 30, skip_tokenizer_init=True,
               **{"max_model_len": 2048, **kwargs})


def generate(llm: LLM, prompts: list[list[int]], **kwargs):
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 24, "ignore_eos": True, "logprobs": 0,
                               "detokenize": False, **kwargs})
    return llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)


def logprobs_of(output) -> list[float]:
    sample = output.outputs[0]
    return [candidates[token].logprob for token, candidates in zip(sample.token_ids, sample.logprobs)]


def reference_logprobs(checkpoint: Path, outputs, dtype: torch.dtype) -> list[torch.Tensor]:
    """transformers' log-probabilities of all tokens at the places of the engine's tokens. Each [tokens, vocab]"""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).cuda().eval()
    found = []
    for output in outputs:
        prompt, tokens = output.prompt_token_ids, output.outputs[0].token_ids
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + tokens], device="cuda")).logits[0].double()
        found.append(logits[len(prompt) - 1: -1].log_softmax(-1).cpu())
    return found


@pytest.fixture(autouse=True)
def empty_device():
    yield
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("mode", ["graphs", "eager", "chunked", "tight", "sequential", "shared"])
def test_agrees_with_transformers(checkpoint, prompts, dtype, mode):
    torch.backends.cuda.matmul.allow_tf32 = False
    kwargs = {"graphs": {}, "eager": {"enforce_eager": True}, "chunked": {"max_num_batched_tokens": 64},
              "tight": {"num_gpu_blocks_override": 76, "max_model_len": 1216},
              "sequential": {"async_scheduling": False}, "shared": {}}[mode]
    if dtype != "bfloat16" and mode not in ("graphs", "tight"):
        pytest.skip("the other modes are about bookkeeping, which bfloat16 shows")
    llm = make(checkpoint, dtype, **kwargs)
    if mode == "tight":
        prompts = prompts[:10]  # the longer ones alone need more
    if mode == "shared":
        prompts = [prompts[10] + prompt for prompt in prompts[:10]]
        generate(llm, prompts[:1])
    outputs = generate(llm, prompts)
    if mode == "tight":
        assert llm._core.scheduler.num_preemptions > 0
    if mode == "shared":
        assert llm._core._executor._runner.num_shared_steps > 0
    assert_right(outputs, checkpoint, dtype, mode)


def assert_right(outputs, checkpoint: Path, dtype: str, mode: str) -> None:
    """As the module says."""
    ours_off, theirs_off, not_best = 0.0, 0.0, 0.0
    exact = reference_logprobs(checkpoint, outputs, torch.float32)
    rounded = reference_logprobs(checkpoint, outputs, getattr(torch, dtype))
    for output, right, theirs in zip(outputs, exact, rounded):
        tokens = torch.tensor(output.outputs[0].token_ids)
        assert len(tokens) == 24
        places = torch.arange(24)
        ours = torch.tensor(logprobs_of(output), dtype=torch.float64)
        ours_off = max(ours_off, (ours - right[places, tokens]).abs().max().item())
        theirs_off = max(theirs_off, (theirs - right)[places, tokens].abs().max().item())
        not_best = max(not_best, (right.max(-1).values - right[places, tokens]).max().item())
    print(f"{checkpoint.name} {dtype} {mode}: off by {ours_off:.4f}, transformers by {theirs_off:.4f}; "
          f"chosen within {not_best:.4f} of the best")
    limit = max(FACTOR * theirs_off, FLOOR[dtype])
    assert ours_off <= limit
    assert not_best <= 2 * limit


def test_graph_equals_eager_bit_for_bit_at_the_captured_size(checkpoint, prompts):
    eager, graphs = (make(checkpoint, "bfloat16", enforce_eager=e) for e in (True, False))
    first, second = generate(eager, prompts[:4]), generate(graphs, prompts[:4])
    worst = max(abs(a - b) for x, y in zip(first, second) for a, b in zip(logprobs_of(x), logprobs_of(y)))
    print(f"graph against eager: largest log-probability difference {worst:.5f}")
    assert [x.outputs[0].token_ids for x in first] == [y.outputs[0].token_ids for y in second]


def test_a_graph_samples_as_the_sampler_does(checkpoint, prompts):
    """Without logprobs, the step's graph samples by itself; with them, the sampler does so from the graph's logits."""
    llm = make(checkpoint, "float32")
    for filters in ({}, {"top_p": 0.9, "top_k": 50}, {"min_p": 0.05}):
        kwargs = {"temperature": 0.9, "seed": 11, **filters}
        alone = [generate(llm, prompts[:6], logprobs=wanted, **kwargs) for wanted in (None, 0)]
        assert [o.outputs[0].token_ids for o in alone[0]] == [o.outputs[0].token_ids for o in alone[1]]
    assert llm._core._executor.num_graph_steps > 100


def test_sampling_is_a_function_of_seed(checkpoint, prompts):
    llm = make(checkpoint, "float32")
    kwargs = {"temperature": 0.9, "top_p": 0.9, "top_k": 50, "seed": 3, "max_tokens": 12}
    together = generate(llm, prompts, **kwargs)
    alone = generate(llm, prompts[:3], **kwargs)
    assert [o.outputs[0].token_ids for o in together[:3]] == [o.outputs[0].token_ids for o in alone]


def test_decode_steps_never_wait_for_the_device(checkpoint, prompts):
    """Under sync debug mode a step that synchronizes raises; only the wait for the step before is allowed."""
    llm = make(checkpoint, "bfloat16")
    generate(llm, prompts)  # everything compiled and allocated
    runner = llm._core._executor._runner
    plain = runner.launch

    def strict(plan):
        if plan.new_rows:
            return plain(plan)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return plain(plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    runner.launch = strict
    generate(llm, prompts, logprobs=None, temperature=1.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", ["last", "mean"])
def test_embeddings_are_pooled_hidden_states_beside_generation(checkpoint, prompts, dtype, kind):
    from transformers import AutoModel

    torch.backends.cuda.matmul.allow_tf32 = False
    (checkpoint / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]')
    (checkpoint / "1_Pooling").mkdir(exist_ok=True)
    mode = {"last": "lasttoken", "mean": "mean"}[kind]
    (checkpoint / "1_Pooling" / "config.json").write_text(f'{{"pooling_mode": "{mode}"}}')
    llm = make(checkpoint, dtype, max_num_batched_tokens=512)
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=0, detokenize=False)

    def prepare(run) -> None:
        for i, prompt in enumerate(prompts):
            run.prepare(f"g{i}", None, prompt, params, 0, 0, "")
            run.prepare_embedding(f"e{i}", prompt, PoolingParams(), 0)

    outputs = llm._run(prepare, use_tqdm=False)
    assert_right([output for output in outputs if output.request_id[0] == "g"], checkpoint, dtype, "with embeddings")
    found = [torch.tensor(output.outputs.embedding) for output in outputs if output.request_id[0] == "e"]
    exact, rounded = [], []
    for vectors, kept in ((exact, torch.float32), (rounded, getattr(torch, dtype))):
        model = AutoModel.from_pretrained(checkpoint, dtype=kept).cuda().eval()
        for prompt in prompts:
            with torch.inference_mode():
                hidden = model(torch.tensor([prompt], device="cuda")).last_hidden_state[0].float()
            vectors.append((hidden[-1] if kind == "last" else hidden.mean(0)).cpu())
    ours, theirs = (max(1 - torch.cosine_similarity(a, b, dim=0).item() for a, b in zip(each, exact))
                    for each in (found, rounded))
    print(f"{checkpoint.name} {dtype} {kind}: cosine off by {ours:.2e}, transformers' by {theirs:.2e}")
    assert ours <= max(FACTOR * theirs, 1e-5)
