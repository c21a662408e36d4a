"""A tiny checkpoint that takes images, with a tokenizer and a chat template: all that a server or a program needs."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel

from quire.engine.tokenizers.byte_level import BYTE_OF
from tests.engine.models import tiny_vision

CONTROL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
FIRST_CONTROL = 998
TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif -%}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""


def write(path: Path, family: str = "qwen2_vl") -> PreTrainedModel:
    """Saves it, and returns transformers' model of it. Bytes are tokens; greedy decoding goes on to its limit."""
    model = tiny_vision.write(path, family)
    rows = [*BYTE_OF, *(f"unused {i}" for i in range(FIRST_CONTROL - len(BYTE_OF)))]
    tokenizer = Tokenizer(models.BPE({text: id for id, text in enumerate(rows)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROL])
    assert tokenizer.token_to_id("<|image_pad|>") == tiny_vision.IMAGE
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [FIRST_CONTROL + 1], "temperature": 0.0}))
    return model
