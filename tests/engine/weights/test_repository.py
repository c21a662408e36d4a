"""Which of a repository's files are fetched, for lists of files as repositories have them."""

from __future__ import annotations

import pytest

from quire.engine.errors import ConfigError
from quire.engine.weights.hub import HubName
from quire.engine.weights.repository import gguf_models, wanted_files

TEXT = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "tokenizer.model", "tekken.json", "chat_template.jinja", "chat_template.json", "merges.txt", "vocab.json",
        "additional_chat_templates/tool_use.jinja", "qwen.tiktoken", "modules.json", "1_Pooling/config.json"]
NEVER = ["README.md", ".gitattributes", "LICENSE", "original/consolidated.00.pth", "original/params.json",
         "original/tokenizer.model", "consolidated.safetensors", "consolidated.safetensors.index.json",
         "onnx/model.onnx", "onnx/config.json", "tf_model.h5", "flax_model.msgpack", "model.onnx", "modeling_x.py",
         "coreml/model.mlpackage", "training_args.bin", "trainer_state.json", "adapter_model.safetensors",
         "flax_model.msgpack.index.json", "figures/a.png", "mmproj-model-f16.gguf"]
WHOLE = ["model.safetensors"]
PARTS = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
BIN = ["pytorch_model.bin"]
BIN_PARTS = ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
GGUF = ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]
SPLIT = ["BF16/m-BF16-00001-of-00003.gguf", "BF16/m-BF16-00002-of-00003.gguf", "BF16/m-BF16-00003-of-00003.gguf"]


@pytest.mark.parametrize(("weights", "others"), [
    (WHOLE, BIN), (WHOLE, BIN_PARTS), (PARTS, BIN), (PARTS, WHOLE), (PARTS, GGUF), (BIN, []), (BIN, GGUF),
    (BIN_PARTS, []), (BIN_PARTS, BIN), ([PARTS[0], "layers_1.safetensors", "rest.safetensors"], [])])
def test_one_format_of_the_weights_and_all_that_is_small_is_wanted(weights: list[str], others: list[str]) -> None:
    assert sorted(wanted_files([*NEVER, *others, *weights, *TEXT])) == sorted([*TEXT, *weights])


def test_what_the_load_format_leaves_out_is_not_wanted() -> None:
    everything = [*TEXT, *WHOLE, *BIN, "m-Q8_0.gguf", *NEVER]
    assert sorted(wanted_files(everything, "dummy")) == sorted(TEXT)
    assert sorted(wanted_files(everything, "safetensors")) == sorted([*TEXT, *WHOLE])
    assert wanted_files(everything, "gguf") == ["m-Q8_0.gguf"]
    with pytest.raises(ConfigError, match=r"holds no config\.json with model\.safetensors .*; it holds .*merges\.txt"):
        wanted_files([*TEXT, *BIN], "safetensors")


@pytest.mark.parametrize(("names", "choice", "wanted"), [
    (["m.gguf", *TEXT], None, ["m.gguf"]),
    ([*SPLIT, *TEXT, "mmproj-F16.gguf", "imatrix_x.gguf"], None, SPLIT),
    ([*GGUF, *SPLIT], "q4_k_m", ["m-Q4_K_M.gguf"]),
    ([*GGUF, *SPLIT], "BF16", SPLIT),
    ([*GGUF, *SPLIT], "BF16/m-BF16-00002-of-00003.gguf", SPLIT),
    ([*GGUF, *PARTS, *TEXT], "m-Q8_0.gguf", ["m-Q8_0.gguf"]),
    (["m.Q2_K.gguf", "m.Q2_K_L.gguf"], "Q2_K", ["m.Q2_K.gguf"]),
    (["Q8_0/m.gguf", "Q4_0/m.gguf"], "Q8_0", ["Q8_0/m.gguf"]),
    (["m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf"], "Q4_K_XL", ["m-UD-Q4_K_XL.gguf"]),
])
def test_a_gguf_file_is_wanted_alone_and_whole(names: list[str], choice: str | None, wanted: list[str]) -> None:
    assert wanted_files(names, gguf=choice) == wanted
    assert wanted[0] in gguf_models(names)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..\\x", "a//x", "x\0", "x\n"])
def test_names_that_lead_out_of_the_repository_are_not_wanted(name: str) -> None:
    assert wanted_files([*TEXT, *WHOLE, f"{name}.json"]) == wanted_files([*TEXT, *WHOLE])
    with pytest.raises(ConfigError, match="holds no GGUF file"):
        wanted_files([f"{name}/m-Q8_0.gguf", *TEXT], gguf="Q8_0")


@pytest.mark.parametrize(("names", "choice", "message"), [
    (GGUF, None, r"several GGUF files; name one.* of: m-Q4_K_M\.gguf, m-Q8_0\.gguf"),
    (GGUF, "Q5_K_M", r"none of its GGUF files is Q5_K_M; name one.*m-Q4_K_M\.gguf"),
    (GGUF, "other.gguf", r"none of its GGUF files is other\.gguf"),
    (["a-Q8_0.gguf", "b-Q8_0.gguf", "c.gguf"], "Q8_0", r"several of its GGUF files are Q8_0.* of: a-Q8_0\.gguf, b-Q8"),
    (SPLIT[1:], None, r"lacks BF16/m-BF16-00001-of-00003\.gguf, of the 3 parts of BF16/m-BF16-00001"),
    ([*TEXT, *WHOLE], "Q8_0", "holds no GGUF file"),
    ([*TEXT, "adapter_model.safetensors"], None, "and no GGUF file; it holds 1_Pooling/config.json, adapter_m"),
    (WHOLE, None, r"holds no config\.json"),
    ([], None, "it holds nothing"),
    ([f"{i}.md" for i in range(50)], None, "and 30 more"),
])
def test_what_cannot_be_chosen_says_what_there_is(names: list[str], choice: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wanted_files(names, gguf=choice)


@pytest.mark.parametrize(("model", "parsed"), [
    ("org/name", HubName("org/name")),
    ("org-1/na.me_2", HubName("org-1/na.me_2")),
    ("org/name:Q4_K_M", HubName("org/name", "Q4_K_M")),
    ("org/name:UD-IQ2_XXS", HubName("org/name", "UD-IQ2_XXS")),
    ("org/name/m.Q8_0.gguf", HubName("org/name", "m.Q8_0.gguf")),
    ("org/name/BF16/m-00001-of-00002.gguf", HubName("org/name", "BF16/m-00001-of-00002.gguf")),
    *((name, None) for name in ("name", "./org/name", "/org/name", "~/org/name", "org/name.gguf", "name.gguf", "a/b/c",
                                "org/name:", "../name/m.gguf", "org//m.gguf", "", "org/na me", "http://org/name")),
])
def test_names_of_a_hub_are_told_from_paths(model: str, parsed: HubName | None) -> None:
    assert HubName.of(model) == parsed
