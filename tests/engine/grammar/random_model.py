"""A tiny model with random weights, and a small vocabulary that spells JSON in tokens of one byte and of several."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.engine.grammar.schemas import schemas
from tests.engine.models import tiny


def write_random(path: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator([json.dumps(schema, ensure_ascii=False) for schema in schemas().values()], trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<end>", "<call>")])
    end = tokenizer.token_to_id("<end>")
    vocab_size = tokenizer.get_vocab_size() + 3  # padded, as models are
    tiny.write(path, "llama", vocab_size=vocab_size, hidden_size=16, num_attention_heads=2, num_key_value_heads=1,
               intermediate_size=16, num_hidden_layers=2, max_position_embeddings=2048, eos_token_id=end,
               bos_token_id=end)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return path
