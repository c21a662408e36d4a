"""Tiny random checkpoints of the families that take images, written by transformers itself, and images for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

# Of all three: special ids at the end of a small vocabulary, as the real ones are at the end of theirs.
IDS = {"vision_start_token_id": 1000, "vision_end_token_id": 1001, "image_token_id": 1002, "video_token_id": 1003}
VOCAB, START, END, IMAGE, VIDEO = 1024, 1000, 1001, 1002, 1003
TEXT = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
TOWER = {"depth": 4, "num_heads": 2, "in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # what differs, of text and tower
    "qwen2_vl": ({"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}},
                 {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "patch_size": 14}),
    # Windows of 4 * 4 tokens.
    "qwen2_5_vl": ({"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}},
                   {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "patch_size": 14,
                    "window_size": 112, "fullatt_block_indexes": [1, 3], "tokens_per_second": 2}),
    "qwen3_vl": ({"head_dim": 16, "rope_parameters": {**ROPE, "mrope_section": [4, 2, 2], "mrope_interleaved": True}},
                 {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "patch_size": 16,
                  "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2, 3]}),
}


@dataclass(frozen=True)
class Picture:
    """What an image processor makes of a picture."""

    grid: tuple[int, int, int]
    pixels: torch.Tensor  # [t * h * w, patch values] float32

    @property
    def num_tokens(self) -> int:
        t, h, w = self.grid
        return t * h * w // 4


def write(path: Path, family: str, *, tied: bool = False) -> PreTrainedModel:
    """Saves a checkpoint, and returns transformers' model of it; weights are large enough that every term matters."""
    text, tower = FAMILIES[family]
    torch.manual_seed(5)
    config = AutoConfig.for_model(family, text_config={**TEXT, **text}, vision_config={**TOWER, **tower},
                                  tie_word_embeddings=tied, **IDS)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.25)
            if weight.dim() == 1:
                weight += 0.5  # a norm's or a bias
        # Never the likeliest: transformers would look for the image of one that was generated.
        model.get_output_embeddings().weight[START:VIDEO + 1] = 0
    model.save_pretrained(path)
    patch_pixels = tower["patch_size"] ** 2
    (path / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "Qwen2VLImageProcessor", "patch_size": tower["patch_size"], "merge_size": 2,
        "temporal_patch_size": 2, "min_pixels": 4 * patch_pixels, "max_pixels": 4 * patch_pixels * 200}))
    return model


def rewrite_config(path: Path, form: str) -> None:
    """config.json as other versions write it: "flat", the hub's, or "4.57"."""
    file = path / "config.json"
    config = json.loads(file.read_text())
    text, architectures = config.pop("text_config"), config.pop("architectures")
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    config["vision_config"]["model_type"] = config["model_type"]
    tied = config.pop("tie_word_embeddings")
    if form == "flat":
        rope["type"] = "mrope"
        del rope["rope_type"]
        text.pop("model_type")
        config = {**config, **text, "rope_scaling": rope, "architectures": architectures, "tie_word_embeddings": tied}
    else:
        config["text_config"] = {**text, "rope_scaling": {**rope, "type": "default"}, "architectures": architectures,
                                 "tie_word_embeddings": tied}
    file.write_text(json.dumps(config))


def rename_tensors(path: Path) -> None:
    """The other set of names: text under model. instead of model.language_model. and the tower without model., or the
    other way round."""
    file = path / "model.safetensors"
    renamed = {}
    for name, tensor in load_file(file).items():
        if name.startswith("model.language_model."):
            name = "model." + name.removeprefix("model.language_model.")
        elif name.startswith("model.visual."):
            name = name.removeprefix("model.")
        elif name.startswith("visual."):
            name = "model." + name
        elif name.startswith("model."):
            name = "model.language_model." + name.removeprefix("model.")
        renamed[name] = tensor
    save_file(renamed, file, {"format": "pt"})


def picture(family: str, height: int, width: int, seed: int = 0) -> Picture:
    """Of so many patches."""
    patch = FAMILIES[family][1]["patch_size"]
    generator = torch.Generator().manual_seed(seed)
    return Picture((1, height, width), torch.randn(height * width, 3 * 2 * patch**2, generator=generator))


def prompt_of(*parts: int | Picture, seed: int = 0) -> list[int]:
    """A number stands for as many tokens of text."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(3, 999, (part,), generator=generator).tolist()
        else:
            ids += [START, *[IMAGE] * part.num_tokens, END]
    return ids


def logits(model: PreTrainedModel, ids: Sequence[int], pictures: Sequence[Picture]) -> torch.Tensor:
    """[tokens, vocab]"""
    tokens = torch.tensor([ids])
    images = {}
    if pictures:
        images = {"pixel_values": torch.cat([each.pixels for each in pictures]),
                  "image_grid_thw": torch.tensor([each.grid for each in pictures]),
                  "mm_token_type_ids": (tokens == IMAGE).int()}
    model.model.rope_deltas = None
    with torch.inference_mode():
        return model(tokens, **images).logits[0]
