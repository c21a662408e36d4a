from __future__ import annotations

import json
from pathlib import Path

import pytest

from quire.engine.errors import ConfigError
from quire.engine.weights import hf_config
from quire.loadtest import images, workloads
from quire.loadtest.__main__ import main
from tests.engine.models.tiny_vision import FAMILIES, TEXT, TOWER
from tests.loadtest.test_throughput import TINY

FLAGS = ["--size", "60x90", "--num-requests", "3", "--num-streams", "2", "--stream-tokens", "12", "--interval-ms", "5",
         "--device", "cpu", "--cpu-threads", "1", "--max-model-len", "256"]


def test_a_directory_with_only_a_config_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    text, tower = FAMILIES["qwen3_vl"]
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "qwen3_vl", "text_config": {**TEXT, **text, "vocab_size": 2000},
        "vision_config": {**TOWER, **tower},
        "image_token_id": 1002, "video_token_id": 1003, "vision_start_token_id": 1000, "vision_end_token_id": 1001}))
    monkeypatch.setenv("OUT", str(tmp_path))
    assert main(["images", "--model", str(tmp_path), *FLAGS]) == 0
    [(name, found)] = json.loads((tmp_path / f"images-{tmp_path.name}.json").read_text())["pictures"].items()
    assert (name, found["tokens"]) == ("60 x 90", 6), "3 rows of 2 tokens, each of 32 * 32 pixels"
    assert found["images"] >= 1
    assert all(value > 0 for value in found.values())
    assert found["images_s"] * (32 + 6 + 16) == pytest.approx(found["total_tok_s"])
    assert "| 60 x 90 | 6 |" in capsys.readouterr().out


def test_a_model_without_a_tower_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    with pytest.raises(ConfigError, match="takes no images"):
        images.main(["--model", str(tmp_path), *FLAGS])


@pytest.mark.parametrize(("shape", "tokens"), [("qwen2-vl-2b", 16384), ("qwen3-vl-4b", 16384)])
def test_the_shapes_of_our_log_are_read(shape: str, tokens: int) -> None:
    model = hf_config.read(workloads.MODELS / shape, with_generation_defaults=True)
    assert model.vision is not None
    assert model.vision.max_image_tokens == tokens
    assert model.vision.out_width == model.hidden_size
