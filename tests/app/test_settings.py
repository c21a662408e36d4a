from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.app.cli import load_settings, main
from quire.app.options import OPTIONS, parse, variable
from quire.app.otlp_endpoint import with_path
from quire.app.sources import load
from quire.app.worker_settings import WorkerSettings, for_workers
from quire.engine.errors import ConfigError
from quire.engine.image_options import checked_limits


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*map(variable, OPTIONS), "VLLM_API_KEY", "VLLM_API_KEY_FILE", "CREDENTIALS_DIRECTORY", "QUIRE_CONFIG"]:
        monkeypatch.delenv(name, raising=False)


def problems_of(argv: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings("serve", argv)
    return caught.value.problems


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "quire.yaml"
    config.write_text("port: 1111\nmax-num-seqs: 11\nlog_level: warning\n")
    monkeypatch.setenv("QUIRE_PORT", "2222")
    monkeypatch.setenv("QUIRE_MAX_NUM_SEQS", "22")
    loaded = load_settings("serve", ["--config", str(config), "--port=3333"])
    settings = loaded.settings
    assert (settings.port, settings.engine.max_num_seqs, settings.log_level) == (3333, 22, "warning")
    assert settings.shutdown_timeout == 60.0
    assert loaded.sources["port"] == "--port"
    assert loaded.sources["max_num_seqs"] == "QUIRE_MAX_NUM_SEQS"
    assert "quire.yaml" in loaded.sources["log_level"]
    assert "shutdown_timeout" not in loaded.sources


def test_every_problem_of_every_source_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "quire.yaml"
    config.write_text("prot: 1\nblock_size: 17\n")
    monkeypatch.setenv("QUIRE_SEED", "x")
    text = "\n".join(problems_of(["--config", str(config), "--dtype", "int3", "--port", "70000", "--max-model-len",
                                  "many", "--nonsense=1"]))
    for expected in ("'prot'; did you mean 'port'", "--block-size: 17", "block_size)", "QUIRE_SEED: 'x'",
                     "--dtype: 'int3'", "--port: 70000", "--max-model-len: 'many'", "--nonsense: there is no setting"):
        assert expected in text


def test_wrong_settings_exit_2_and_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("serve", "check"):
        assert main([command, "--port", "-1", "--dtype", "int3"]) == 2
        listed = capsys.readouterr().err
        assert "2 problem(s)" in listed
        assert "--port: -1" in listed
        assert "--dtype" in listed


@pytest.mark.parametrize(("argv", "name", "value"), [
    (["--max-model-len=2048"], "max_model_len", 2048), (["--max-model-len", "2k"], "max_model_len", 2000),
    (["--max-model-len", "128K"], "max_model_len", 131072), (["--max-model-len", "25.6k"], "max_model_len", 25600),
    (["some/model"], "model", "some/model"), (["--model", "some/model"], "model", "some/model"),
    (["--no-enable-prefix-caching"], "enable_prefix_caching", False), (["--enforce-eager"], "enforce_eager", True),
    (["-tp", "1"], "tensor_parallel_size", 1), (["-asc", "3"], "api_server_count", 3),
    (["--served-model-name", "a", "b"], "served_model_name", ["a", "b"]),
    (["--api-key", "a", "b"], "api_key", ["a", "b"]),
])
def test_flags_as_vllm_has_them(argv: list[str], name: str, value: Any) -> None:
    settings = load_settings("serve", argv).settings
    owner = settings.engine if OPTIONS[name].of_engine else settings
    assert getattr(owner, name) == value


def test_keys_come_from_vllms_variable_and_decide_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings("serve", []).settings.address == "127.0.0.1"
    assert any("--host" in p and "VLLM_API_KEY" in p for p in problems_of(["--host", "0.0.0.0"]))
    assert load_settings("serve", ["--host", "0.0.0.0", "--allow-public-without-key"]).settings.address == "0.0.0.0"
    assert load_settings("serve", ["--host", "::1"]).settings.address == "::1"
    monkeypatch.setenv("VLLM_API_KEY", "first, second")
    settings = load_settings("serve", []).settings
    assert settings.api_key == ["first", "second"]
    assert settings.address == "0.0.0.0"
    monkeypatch.setenv("VLLM_API_KEY", "")
    assert any("key is empty" in p for p in problems_of([]))


def test_a_service_variable_of_kubernetes_is_not_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_PORT", "tcp://10.0.0.1:8000")
    assert load_settings("serve", []).settings.port == 8000


def test_variables_of_kubernetes_and_of_others_raise_no_doubts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"QUIRE_SERVICE_HOST": "10.0.0.1", "QUIRE_SERVICE_PORT_HTTP": "8000",
                        "QUIRE_PORT_8000_TCP_ADDR": "10.0.0.1", "QUIRE_PORT": "tcp://10.0.0.1:8000",
                        "QUIRE_ADMIN_PORT": "tcp://10.0.0.1:9000", "QUIRE_GPUS": "2", "QUIRE_ENGINE": "1",
                        "QUIRE_MODEL": "smollm2-135m-instruct"}.items():
        monkeypatch.setenv(name, value)
    loaded = load_settings("serve", [])
    assert loaded.settings.admin_port is None
    assert loaded.warnings == []


def test_a_mistyped_variable_is_a_warning_with_the_nearest_name(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("QUIRE_MAX_MODEL_LENGTH", "1")
    assert main(["check"]) == 0
    assert ("warning: there is no setting 'QUIRE_MAX_MODEL_LENGTH'; did you mean 'QUIRE_MAX_MODEL_LEN'?"
            in capsys.readouterr().err)


@pytest.mark.parametrize("program", ["vllm serve", "python -m vllm.entrypoints.openai.api_server", "quire serve",
                                     "python3 -m quire serve"])
def test_check_takes_a_whole_command_line(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *program.split(), "--port", "81"]) == 0
    assert re.search(r"^--port +81 ", capsys.readouterr().out, re.MULTILINE)
    assert main(["check", *program.split(), "--prot", "81"]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        "  --prot: there is no setting '--prot'; did you mean '--port'?"]


def test_toml_is_read_where_python_can(tmp_path: Path) -> None:
    pytest.importorskip("tomllib")
    config = tmp_path / "quire.toml"
    config.write_text('port = 1234\nserved_model_name = ["a"]\n')
    settings = load_settings("serve", ["--config", str(config)]).settings
    assert settings.port == 1234
    assert settings.model_names == ["a"]


@pytest.mark.parametrize("content", ["- a\n", "a: [", "port: {a: 1}\n", "port: true\n", "port: !!int ''\n",
                                     "[" * 20000])
def test_a_file_that_makes_no_sense_is_a_problem_not_a_crash(tmp_path: Path, content: str) -> None:
    config = tmp_path / "quire.yaml"
    config.write_text(content)
    assert problems_of(["--config", str(config)])
    assert problems_of(["--config", str(tmp_path / "absent.yaml")])


@pytest.mark.parametrize(("content", "said"), [
    ("port: 1\nseed: 2\nport: 3\n", "line 3: port is there already, on line 1"),
    ("max_model_len: 100\nmax-model-len: 200\n", "max-model-len is max_model_len, which is there too"),
])
def test_a_setting_that_stands_twice_in_the_file_is_refused_by_name(tmp_path: Path, content: str, said: str) -> None:
    config = tmp_path / "quire.yaml"
    config.write_text(content)
    (problem,) = problems_of(["--config", str(config)])
    assert said in problem


@pytest.mark.parametrize("argv", [
    ["--enable-prefix-caching", "false"], ["--enable-prefix-caching=false"], ["--no-enable-prefix-caching", "True"],
    ["some/model", "--enable-prefix-caching", "0"]])
def test_a_value_after_a_switch_is_not_taken_for_the_model(argv: list[str]) -> None:
    (problem,) = problems_of(argv)
    assert "takes no value; write --enable-prefix-caching or --no-enable-prefix-caching" in problem


def test_a_model_may_follow_a_switch_and_a_value_may_be_called_true() -> None:
    settings = load_settings("serve", ["--enforce-eager", "some/model", "--served-model-name", "true"]).settings
    assert settings.engine.enforce_eager
    assert settings.engine.model == "some/model"
    assert settings.model_names == ["true"]


def test_an_unknown_flag_is_one_problem_its_value_included() -> None:
    assert problems_of(["some/model", "--nonsense", "4"]) == ["--nonsense: there is no setting '--nonsense'"]
    assert problems_of(["--prot", "1"]) == ["--prot: there is no setting '--prot'; did you mean '--port'?"]


@pytest.mark.parametrize(("command", "codes"), [("serve", "71 the engine hung"), ("check", "0 usable"),
                                                ("doctor", "1 it would not")])
def test_help_tells_the_defaults_and_the_commands_own_exit_codes(command: str, codes: str,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    told = capsys.readouterr().out
    assert codes in told.partition("Exit codes:")[2]
    assert told.count("Exit codes:") == 1
    assert ("--json" in told) == (command == "doctor")
    assert "[on]" in told
    assert "[0]" in told
    assert "[]" not in told


def test_check_shows_no_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "a-very-secret-key")
    assert main(["check", "--port", "81"]) == 0
    shown = capsys.readouterr().out
    assert "a-very-secret-key" not in shown
    assert "1 set (not shown)" in shown
    assert "--port" in shown


def test_no_key_reaches_the_workers_file_and_only_the_owner_reads_it(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "a-very-secret-key")
    shared = for_workers(load_settings("serve", ["--max-model-len", "512"]).settings, str(tmp_path), 1)
    shared.save()
    path = tmp_path / "settings.json"
    assert "a-very-secret-key" not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert WorkerSettings.from_run_dir(str(tmp_path)) == shared
    assert json.loads(path.read_text())["serve"]["engine"]["max_model_len"] == 512


@given(st.integers(-(10**15), 10**15))
def test_integers_survive_as_text(value: int) -> None:
    assert parse(str(value), int) == value == parse(value, int)


@hypothesis.settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(OPTIONS)), st.text(max_size=8), max_size=6))
def test_any_flags_load_or_are_a_config_error(flags: dict[str, str]) -> None:
    with contextlib.suppress(ConfigError):
        load(dict(flags), {})


@pytest.mark.parametrize("words", [
    ['--limit-mm-per-prompt={"image": 4}'], ["--limit_mm_per_prompt", "image=4,video=0"],
    ["--limit-mm-per-prompt.image", "4"], ["--limit-mm-per-prompt", '{"image": {"count": 4, "width": 512}}']])
def test_a_setting_of_several_values_is_written_as_vllm_has_it(words: list[str]) -> None:
    limits = load_settings("serve", words).settings.engine.limit_mm_per_prompt
    assert checked_limits(limits) == 4
    [problem] = problems_of(["--limit-mm-per-prompt", "image"])
    assert "'image' is no JSON object" in problem


# Where keys come from


def write(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(("content", "keys"), [
    ("one\n", ["one"]), ("one", ["one"]), ("one,two\n", ["one", "two"]), ("one\ntwo\n", ["one", "two"]),
    ("one,\ntwo\r\n\nthree", ["one", "two", "three"]), (" one ", ["one"]),
])
def test_keys_come_from_a_file_as_docker_and_systemd_hand_them_over(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, keys: list[str]) -> None:
    path = write(tmp_path / "VLLM_API_KEY", content, 0o444)
    monkeypatch.setenv("VLLM_API_KEY_FILE", path)
    assert load_settings("serve", []).settings.api_key == keys
    monkeypatch.delenv("VLLM_API_KEY_FILE")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    loaded = load_settings("serve", [])
    assert loaded.settings.api_key == keys
    assert loaded.settings.address == "0.0.0.0"
    assert loaded.sources["api_key"] == "systemd credential VLLM_API_KEY"
    monkeypatch.setenv("VLLM_API_KEY", "stronger-than-a-credential")
    assert load_settings("serve", []).settings.api_key == ["stronger-than-a-credential"]


@pytest.mark.parametrize("content", ["", "\n", "one,,two", ",one", None])
def test_a_file_without_keys_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None) -> None:
    path = str(tmp_path / "absent") if content is None else write(tmp_path / "key", content)
    monkeypatch.setenv("VLLM_API_KEY_FILE", path)
    assert any("VLLM_API_KEY_FILE" in problem for problem in problems_of([]))


def test_a_variable_and_its_file_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "a-key-that-is-long-enough")
    monkeypatch.setenv("VLLM_API_KEY_FILE", write(tmp_path / "key", "another"))
    assert any("give one of them" in problem for problem in problems_of([]))


def test_a_file_of_named_keys_is_as_good_as_a_key_and_is_checked_at_the_start(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = write(tmp_path / "quire-keys", "[]")
    settings = load_settings("serve", []).settings
    assert (settings.api_key_file, settings.address) == (path, "0.0.0.0")
    assert main(["check"]) == 0
    write(tmp_path / "quire-keys", "- name: a b\n- nonsense: 1\n")
    for command in ("serve", "check"):
        capsys.readouterr()
        assert main([command]) == 2
        listed = capsys.readouterr().err
        assert listed.count(f"--api-key-file: {path}: ") == 7
        assert "key 'a b': name: must be" in listed
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert main(["check", "--api-key-file", str(tmp_path / "absent")]) == 2


def test_a_short_key_is_a_warning_that_does_not_show_it(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "tooshort-15-let,this-one-is-long-enough")
    assert main(["check"]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("warning: an API key has fewer than 16 characters") == 1
    assert "tooshort" not in shown.out + shown.err


def test_the_admin_port_is_another_than_the_main_one() -> None:
    assert any("--admin-port: 8000 is --port too" in problem for problem in problems_of(["--admin-port", "8000"]))
    assert load_settings("serve", ["--admin-port", "8000", "--uds", "/run/q.sock"]).settings.admin_port == 8000
    assert load_settings("serve", ["--admin-port", "0", "--port", "0"]).settings.admin_port == 0


@pytest.mark.parametrize(("url", "said"), [
    ("http://collector:4317", "names gRPC's port; traces go over HTTP, mostly to http://collector:4318/v1/traces"),
    ("grpc://collector:4317", "does not begin with http:// or https://; traces go over HTTP"),
    ("http://", "names no host"), ("http://a:port/", "is no address")])
def test_an_address_for_traces_that_is_grpcs_is_refused_with_the_other(url: str, said: str) -> None:
    (problem,) = problems_of(["--otlp-traces-endpoint", url])
    assert problem.startswith("--otlp-traces-endpoint: ") and said in problem


def test_an_address_for_traces_gets_its_path_and_variables_of_others_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for url, sent_to in (("http://c:4318", "http://c:4318/v1/traces"), ("http://c:4318/", "http://c:4318/v1/traces"),
                         ("https://c/otlp", "https://c/otlp")):
        assert load_settings("serve", ["--otlp-traces-endpoint", url]).warnings == []
        assert with_path(url) == sent_to
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")
    (warning,) = load_settings("serve", []).warnings
    assert warning.startswith("OTEL_EXPORTER_OTLP_ENDPOINT: it names gRPC's port")
