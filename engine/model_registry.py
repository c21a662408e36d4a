"""Which class runs which architecture; the keys are Hugging Face's names. One line adds a family.

Strings only, so that the front end can refuse an unknown architecture without importing torch. Read by
`quire.engine.weights.hf_config` (is it known, what does its config say?) and `quire.engine.weights.load` (import it).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """`model` is "module:Class" under engine/models; `facts` "module:function" under engine/model_facts, where the
    family's config.json has other names than most, and so is `vision`, of those that take images. `overflows_float16`:
    trained in bfloat16, its activations grow beyond what float16 holds."""

    model: str
    facts: str | None = None
    vision: str | None = None
    overflows_float16: bool = False


# What has no line below runs by transformers' own code.
OTHER = Family("transformers_model:TransformersModel", "other:facts")

FAMILIES = {
    "BaiChuanForCausalLM": Family("baichuan:Baichuan", "llama_like:baichuan"),
    "BaichuanForCausalLM": Family("baichuan:Baichuan", "llama_like:baichuan"),
    "BloomForCausalLM": Family("bloom:Bloom", "bloom:facts"),
    "FalconForCausalLM": Family("falcon:Falcon", "falcon:facts"),
    "GPT2LMHeadModel": Family("gpt2:GPT2", "gpt2:facts"),
    "GPTBigCodeForCausalLM": Family("gpt_bigcode:GPTBigCode", "gpt2:bigcode"),
    "GPTJForCausalLM": Family("gptj:GPTJ", "gpt2:gptj"),
    "GPTNeoXForCausalLM": Family("gpt_neox:GPTNeoX", "gpt_neox:facts"),
    "Gemma2ForCausalLM": Family("gemma2:Gemma2", "gemma:gemma2", overflows_float16=True),
    "Gemma3ForCausalLM": Family("gemma3:Gemma3", "gemma:gemma3", overflows_float16=True),
    "GemmaForCausalLM": Family("gemma:Gemma", "gemma:facts", overflows_float16=True),
    "Glm4ForCausalLM": Family("glm4:Glm4"),
    "GraniteForCausalLM": Family("granite:Granite"),
    "LlamaForCausalLM": Family("llama:Llama", "llama_like:windowed"),
    "Ministral3ForCausalLM": Family("ministral3:Ministral3", "llama_like:windowed"),
    "MinistralForCausalLM": Family("mistral:Mistral", "llama_like:windowed"),
    "MistralForCausalLM": Family("mistral:Mistral", "llama_like:windowed"),
    "MixtralForCausalLM": Family("mixtral:Mixtral", "llama_like:windowed"),
    "MptForCausalLM": Family("mpt:MPT", "mpt:facts"),
    "OPTForCausalLM": Family("opt:OPT", "opt:facts"),
    "Olmo2ForCausalLM": Family("olmo2:Olmo2"),
    "Olmo3ForCausalLM": Family("olmo2:Olmo2", "llama_like:olmo3"),
    "Phi3ForCausalLM": Family("phi3:Phi3", "llama_like:windowed"),
    "Qwen2VLForConditionalGeneration": Family("qwen2_vl:Qwen2VL", "qwen_vl:facts", "qwen_vl:qwen2_vl"),
    "Qwen2_5_VLForConditionalGeneration": Family("qwen2_5_vl:Qwen25VL", "qwen_vl:facts", "qwen_vl:qwen2_5_vl"),
    "Qwen2ForCausalLM": Family("qwen2:Qwen2", "llama_like:qwen2"),
    "Qwen3MoeForCausalLM": Family("qwen3_moe:Qwen3Moe", "llama_like:qwen2"),
    "Qwen3VLForConditionalGeneration": Family("qwen3_vl:Qwen3VL", "qwen_vl:facts", "qwen_vl:qwen3_vl"),
    "Qwen3ForCausalLM": Family("qwen3:Qwen3", "llama_like:qwen2"),
    "RWForCausalLM": Family("falcon:Falcon", "falcon:facts"),
    "SmolLM3ForCausalLM": Family("smollm3:SmolLM3", "llama_like:smollm3"),
}

# By model_type, for files that name no architecture at their root, as transformers 4.52 to 4.57 wrote those of models
# in several parts.
ARCHITECTURES_OF_TYPES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}

# Without a head: what a base model's checkpoint names is run like the family's own, and makes embeddings alone.
BASE_MODELS = {
    "Gemma2Model": "Gemma2ForCausalLM",
    "Gemma3TextModel": "Gemma3ForCausalLM",
    "GemmaModel": "GemmaForCausalLM",
    "GPT2Model": "GPT2LMHeadModel",
    "GPTNeoXModel": "GPTNeoXForCausalLM",
    "LlamaModel": "LlamaForCausalLM",
    "MistralModel": "MistralForCausalLM",
    "Phi3Model": "Phi3ForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
    "Qwen3Model": "Qwen3ForCausalLM",
}


def family_of(architecture: str, model_impl: str) -> Family | None:
    """By --model-impl: our own (quire), transformers' code (transformers), or the first that there is (auto)."""
    if model_impl == "transformers":
        return OTHER
    return FAMILIES.get(BASE_MODELS.get(architecture, architecture), OTHER if model_impl == "auto" else None)


def overflows_float16(architecture: str) -> bool:
    """Whoever's code runs it."""
    return FAMILIES.get(BASE_MODELS.get(architecture, architecture), OTHER).overflows_float16
