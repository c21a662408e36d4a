from __future__ import annotations

import json
from pathlib import Path

import pytest

from quire.engine.errors import ConfigError
from quire.loadtest import throughput
from quire.loadtest.__main__ import main

PEERS = Path(throughput.__file__).with_name("peers") / "h200.json"
TINY = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "rope_theta": 10000.0, "vocab_size": 2000,
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02}


def test_a_directory_with_only_a_config_is_measured(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    report = tmp_path / "report.json"
    code = main(["throughput", "--model", str(tmp_path), "--workload", "single,sharegpt", "--num-requests", "4",
                 "--device", "cpu", "--cpu-threads", "1", "--json", str(report)])
    assert code == 0
    results = json.loads(report.read_text())
    assert results["dtype"] == "float32" and results["startup_s"] >= 0
    assert set(results["single"]) == {"s", "out_tok_s", "total_tok_s", "ttft_ms", "tpot_ms"}
    assert set(results["sharegpt"]) == {"s", "out_tok_s", "total_tok_s"}
    assert results["sharegpt"]["total_tok_s"] > results["sharegpt"]["out_tok_s"] > 0
    assert "sharegpt" in capsys.readouterr().out


def test_comparison_says_how_many_times_faster():
    peers = {"other": {"decode": {"s": 10.0, "out_tok_s": 100}}}
    line = throughput._line("decode", {"s": 5.0, "out_tok_s": 200.0, "total_tok_s": 250.0}, peers)
    assert "other: s 10 (2.00x)  out_tok_s 100 (2.00x)" in line


def test_recorded_peers_have_every_shape_that_is_kept():
    for shape in ("llama-7b", "qwen2.5-7b", "qwen2.5-0.5b"):
        assert "single" in throughput._peers(str(PEERS), shape)["vllm-0.25.1"]


@pytest.mark.parametrize(("flags", "said"), [
    (["--compare", "/nowhere/peers.json"], "--compare: /nowhere/peers.json cannot be read: No such file"),
    (["--compare", "{tmp}/bad"], "--compare: {tmp}/bad is not JSON: "),
    (["--compare", "{tmp}/list"], "--compare: {tmp}/list has nothing on 'm'"),
    (["--model", "/nowhere"], "--model: /nowhere does not exist"),
    (["--dtype", "int3"], "--dtype: 'int3' is not one of"),
])
def test_what_cannot_be_used_is_one_line_that_names_it(tmp_path, capsys, flags, said):
    (tmp_path / "bad").write_text("{")
    (tmp_path / "list").write_text("[]")
    assert main(["throughput", "--model", "m", *(flag.format(tmp=tmp_path) for flag in flags)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("quire bench throughput: " + said.format(tmp=tmp_path))
    assert told.count("\n") == 1


def test_numbers_are_written_as_for_serve_and_there_is_something_to_measure(capsys):
    assert throughput._parser().parse_args(["--model", "m", "--max-model-len", "2k"]).max_model_len == 2000
    for flag, value, said in (("--max-model-len", "many", "'many' is not a whole number"),
                              ("--num-requests", "0", "0 is less than 1")):
        with pytest.raises(SystemExit):
            throughput.main(["--model", "m", flag, value])
        assert f"{flag}: {said}" in capsys.readouterr().err


def test_an_unknown_shape_or_workload_is_refused_by_name(capsys):
    with pytest.raises(ConfigError, match="nothing on 'gpt-2'"):
        throughput._peers(str(PEERS), "gpt-2")
    with pytest.raises(SystemExit):
        throughput.main(["--model", "m", "--workload", "single,nonsense"])
    assert "no 'nonsense'" in capsys.readouterr().err


def test_an_unknown_measurement_lists_the_known_ones(capsys):
    assert main(["nonsense"]) == 2
    assert "there is no 'nonsense'" in capsys.readouterr().err
    assert main([]) == 2
    assert "throughput" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "throughput" in capsys.readouterr().out
