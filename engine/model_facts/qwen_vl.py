"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a tower for images beside a Qwen2 or Qwen3 decoder, with M-RoPE.

Their config.json has three forms: flat, with the text's fields at the root (the hub's own); with a text_config beside
them (transformers 4.52 to 4.57); and with nothing else than text_config (5.x).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from quire.engine.arguments import shown
from quire.engine.errors import ConfigError
from quire.engine.model_facts.fields import refuse_malformed, refuse_no_count
from quire.engine.model_facts.llama_like import qwen2
from quire.engine.model_facts.vision import ACTIVATIONS, VisionFacts

_MOST = 2**20
_IDS = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
        "vision_end_token_id": 151653}


class _Defaults(NamedTuple):
    """Of what files may leave out; `most_pixels` is the image processor's."""

    mrope_section: tuple[int, int, int]
    patch_size: int
    most_pixels: int


_QWEN2, _QWEN3 = _Defaults((16, 24, 24), 14, 1_003_520), _Defaults((24, 20, 20), 16, 16_777_216)


def facts(hf: dict[str, Any]) -> dict[str, Any]:
    """The text's fields at the root, in all three forms; M-RoPE's own are left in rope_parameters."""
    text = hf.get("text_config") or {}
    if not isinstance(text, dict):
        raise ConfigError(f"text_config must be an object, is {shown(text)}")
    text = {name: value for name, value in text.items() if value is not None}
    refuse_malformed(text)
    # Before transformers 5 the decoder's part said whether it is tied, since then the whole does.
    is_tied = bool(hf.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    whole = {**hf, **text, "tie_word_embeddings": is_tied, "model_type": hf.get("model_type")}
    rope = dict(whole.pop("rope_scaling", None) or {}) | dict(whole.get("rope_parameters") or {})
    if "mrope" in (rope.get("type"), rope.get("rope_type")):  # which says how positions are counted, and no stretching
        rope = {name: value for name, value in rope.items() if name != "type"} | {"rope_type": "default"}
    return qwen2({**whole, "rope_parameters": rope})


def qwen2_vl(hf: dict[str, Any]) -> VisionFacts:
    config = _vision_config(hf)
    width = _count(config, "embed_dim", 1280)
    return _facts(hf, config, _QWEN2, width=width,
                  intermediate_size=width * _count(config, "mlp_ratio", 4),
                  hidden_act=_activation(config, "quick_gelu"),
                  out_width=_count(config, "hidden_size", hf["hidden_size"]))


def qwen2_5_vl(hf: dict[str, Any]) -> VisionFacts:
    config = _vision_config(hf)
    return _facts(hf, config, _QWEN2, width=_count(config, "hidden_size", 3584),
                  intermediate_size=_count(config, "intermediate_size", 3420),
                  hidden_act=_activation(config, "silu"),
                  out_width=_count(config, "out_hidden_size", 3584),
                  window_pixels=_count(config, "window_size", 112),
                  full_attention_layers=_layers(config, "fullatt_block_indexes", [7, 15, 23, 31]))


def qwen3_vl(hf: dict[str, Any]) -> VisionFacts:
    """Raises ConfigError for fewer layers of the decoder than get features of the tower's: the last layer gets none."""
    config = _vision_config(hf)
    levels = _layers(config, "deepstack_visual_indexes", [8, 16, 24])
    if len(levels) >= hf["num_hidden_layers"]:
        raise ConfigError(f"deepstack_visual_indexes names {len(levels)} layers of the tower, whose outputs are added "
                          f"behind as many of the decoder's; it must have more, and has {hf['num_hidden_layers']}")
    positions = _count(config, "num_position_embeddings", 2304)
    if round(positions**0.5) ** 2 != positions:
        raise ConfigError(f"vision_config: num_position_embeddings must be a square, is {positions}")
    return _facts(hf, config, _QWEN3, width=_count(config, "hidden_size", 1152),
                  intermediate_size=_count(config, "intermediate_size", 4304),
                  hidden_act=_activation(config, "gelu_pytorch_tanh"),
                  out_width=_count(config, "out_hidden_size", 3584),
                  num_positions=positions, deepstack_layers=levels)


def _facts(hf: dict[str, Any], config: dict[str, Any], defaults: _Defaults, **own: Any) -> VisionFacts:
    """What all three have, with their classes' defaults, and a family's own."""
    patch = _count(config, "patch_size", defaults.patch_size)
    merge = _count(config, "spatial_merge_size", 2)
    image, video, start, end = (_token_id(hf, name) for name in _IDS)
    facts = VisionFacts(
        model_type=str(hf.get("model_type")),
        image_token_id=image,
        video_token_id=video,
        vision_start_id=start,
        vision_end_id=end,
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=_count(config, "temporal_patch_size", 2),
        in_channels=_count(config, "in_channels", 3),
        max_image_tokens=max(1, defaults.most_pixels // (patch * merge) ** 2),
        depth=_count(config, "depth", None),
        num_heads=_count(config, "num_heads", 16),
        mrope_section=_mrope_section(hf, defaults.mrope_section),
        mrope_interleaved=bool(hf["rope_parameters"].get("mrope_interleaved", False)),
        **own)
    _refuse_misfits(hf, facts)
    return facts


def _refuse_misfits(hf: dict[str, Any], facts: VisionFacts) -> None:
    """Raises ConfigError where the numbers do not fit each other."""
    if facts.out_width != hf["hidden_size"]:
        raise ConfigError(f"vision_config: the tower's features have {facts.out_width} numbers, and hidden_size is "
                          f"{hf['hidden_size']}")
    if facts.width % (4 * facts.num_heads):
        raise ConfigError(f"vision_config: {facts.num_heads} heads do not divide the tower's width of {facts.width} "
                          "into multiples of 4, which turn by rows and columns in pairs")
    token_pixels = facts.patch_size * facts.merge_size
    if facts.window_pixels % token_pixels:
        raise ConfigError(f"vision_config: window_size must be a multiple of {token_pixels}, is {facts.window_pixels}")


def _mrope_section(hf: dict[str, Any], default: tuple[int, int, int]) -> tuple[int, ...]:
    """Raises ConfigError where the sections are not as many pairs as a head turns."""
    section = hf["rope_parameters"].get("mrope_section", list(default))
    pairs = (hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]) // 2
    is_right = isinstance(section, list) and len(section) == 3 and all(type(n) is int and n > 0 for n in section)
    if not is_right or sum(section) != pairs:
        raise ConfigError(f"rope_parameters: mrope_section must be three positive integers that make {pairs} together, "
                          f"half a head's numbers; is {shown(section)}")
    return tuple(section)


def _vision_config(hf: dict[str, Any]) -> dict[str, Any]:
    config = hf.get("vision_config")
    if not isinstance(config, dict):
        raise ConfigError(f"vision_config must be an object, is {shown(config)}")
    return config


def _count(config: dict[str, Any], name: str, default: int | None) -> int:
    value = config.get(name, default)
    try:
        refuse_no_count(name, value, _MOST)
    except ConfigError as error:
        raise ConfigError(f"vision_config: {error}") from error
    assert isinstance(value, int)
    return value


def _token_id(hf: dict[str, Any], name: str) -> int:
    value = hf.get(name, _IDS[name])
    if type(value) is not int or not 0 <= value < hf["vocab_size"]:
        raise ConfigError(f"{name} must be one of the {hf['vocab_size']} tokens, is {shown(value)}")
    return value


def _activation(config: dict[str, Any], default: str) -> str:
    name = config.get("hidden_act", default)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ConfigError(f"vision_config: hidden_act {shown(name)} is not supported; supported are "
                          f"{', '.join(ACTIVATIONS)}")
    return name


def _layers(config: dict[str, Any], name: str, default: list[int]) -> tuple[int, ...]:
    value, depth = config.get(name, default), config.get("depth")
    if not isinstance(value, list) or not all(type(i) is int and type(depth) is int and 0 <= i < depth for i in value):
        raise ConfigError(f"vision_config: {name} must list layers of the {depth}, is {shown(value)}")
    return tuple(value)
