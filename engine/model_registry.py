"""Which class runs which architecture; the keys are Hugging Face's names. One line adds a model.

Strings only, so that the front end can refuse an unknown architecture without importing torch. Read by
`quire.engine.weights.hf_config` (is it known?) and `quire.engine.weights.load` (import it).
"""

from __future__ import annotations

ARCHITECTURES = {
    "LlamaForCausalLM": "quire.engine.models.llama:Llama",
    "MistralForCausalLM": "quire.engine.models.mistral:Mistral",
    "Qwen2ForCausalLM": "quire.engine.models.qwen2:Qwen2",
}
