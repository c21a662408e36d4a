"""Which class runs which architecture; the keys are Hugging Face's names. One line adds a family.

Strings only, so that the front end can refuse an unknown architecture without importing torch. Read by
`quire.engine.weights.hf_config` (is it known, what does its config say?) and `quire.engine.weights.load` (import it).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """`model` is "module:Class" under engine/models; `facts` "module:function" under engine/model_facts, where the
    family's config.json has other names than most."""

    model: str
    facts: str | None = None


FAMILIES = {
    "LlamaForCausalLM": Family("llama:Llama"),
    "MistralForCausalLM": Family("mistral:Mistral"),
    "Qwen2ForCausalLM": Family("qwen2:Qwen2"),
    "Qwen3ForCausalLM": Family("qwen3:Qwen3"),
}
