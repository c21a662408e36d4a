"""config.json of models that take images: what its fields may hold, and what the image processor's files add."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from quire.engine.errors import ConfigError
from quire.engine.model_config import ModelConfig
from quire.engine.model_facts.vision import VisionFacts
from quire.engine.weights import hf_config
from tests.engine.models.tiny_vision import FAMILIES, IDS, TEXT, TOWER

ODD: list[Any] = [0, -1, 7, "x", "4", 1.5, 10**9, [], [1], [0, "1"], {}, True, None, float("nan"), [0, 1, 2, 3], [99]]


def config_of(family: str) -> dict[str, Any]:
    text, tower = FAMILIES[family]
    return copy.deepcopy({"model_type": family, "text_config": {**TEXT, **text}, "vision_config": {**TOWER, **tower},
                          **IDS})


def read(hf: dict[str, Any]) -> ModelConfig:
    return hf_config.model_config(Path("model"), "hf", hf, None, {}, "quire")


def outcome(hf: dict[str, Any]) -> tuple[VisionFacts | None, str]:
    try:
        return read(hf).vision, ""
    except ConfigError as error:
        return None, str(error)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_value_of_any_field_is_refused_in_a_line_or_makes_sound_facts(family: str) -> None:
    refused = 0
    right = config_of(family)
    places = [("vision_config", name) for name in right["vision_config"]]
    places += [("text_config", name) for name in (*right["text_config"], "tie_word_embeddings")]
    for part, name in [*places, *(("", name) for name in (*IDS, "vision_config", "text_config"))]:
        for value in ODD:
            hf = config_of(family)
            (hf[part] if part else hf)[name] = value
            vision, refusal = outcome(hf)
            if vision is None:
                assert re.fullmatch("model: .{10,400}", refusal), refusal
                refused += 1
                continue
            assert vision.out_width == TEXT["hidden_size"]
            assert vision.width % vision.num_heads == 0
            assert len(vision.deepstack_layers) < TEXT["num_hidden_layers"]
    assert refused > 250


@pytest.mark.parametrize(("family", "part", "changes", "message"), [
    ("qwen2_vl", "vision_config", {"hidden_size": 32}, "features have 32 numbers, and hidden_size is 64"),
    ("qwen2_vl", "vision_config", {"num_heads": 5}, "5 heads do not divide the tower's width of 32"),
    ("qwen2_vl", "vision_config", {"hidden_act": "relu"}, "vision_config: hidden_act 'relu' is not supported"),
    ("qwen2_vl", "vision_config", {"depth": 0}, "vision_config: depth must be a positive integer, is 0"),
    ("qwen2_5_vl", "vision_config", {"window_size": 100}, "window_size must be a multiple of 28, is 100"),
    ("qwen2_5_vl", "vision_config", {"fullatt_block_indexes": [4]}, r"must list layers of the 4, is \[4\]"),
    ("qwen3_vl", "vision_config", {"num_position_embeddings": 60}, "num_position_embeddings must be a square, is 60"),
    ("qwen3_vl", "text_config", {"num_hidden_layers": 3}, "names 3 layers of the tower.* it must have more, and has 3"),
    ("qwen3_vl", "text_config", {"rope_parameters": {"mrope_section": [4, 2, 3]}}, "that make 8 together"),
])
def test_the_field_is_named_with_its_value_and_what_it_may_be(family: str, part: str, changes: dict[str, Any],
                                                              message: str) -> None:
    hf = config_of(family)
    hf[part].update(changes)
    with pytest.raises(ConfigError, match=message):
        read(hf)


@pytest.mark.parametrize(("file", "stated", "tokens"), [
    (None, {}, 16_777_216 // 1024),
    ("preprocessor_config.json", {"max_pixels": 20480}, 20),
    ("preprocessor_config.json", {"size": {"longest_edge": 10240, "shortest_edge": 100}}, 10),
    ("preprocessor_config.json", {"image_mean": [0.5]}, 16_777_216 // 1024),
    ("processor_config.json", {"image_processor": {"size": {"longest_edge": 30720}}, "video_processor": {}}, 30),
])
def test_the_largest_image_is_the_processors(file: str | None, stated: dict[str, Any], tokens: int, tmp_path: Path
                                             ) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of("qwen3_vl")))
    if file is not None:
        (tmp_path / file).write_text(json.dumps(stated))
    vision = hf_config.read(tmp_path, with_generation_defaults=True).vision
    assert vision is not None
    assert vision.max_image_tokens == tokens


def test_a_limit_that_is_no_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of("qwen2_vl")))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"max_pixels": "many"}))
    with pytest.raises(ConfigError, match="most pixels of an image must be a positive integer, is 'many'"):
        hf_config.read(tmp_path, with_generation_defaults=True)
