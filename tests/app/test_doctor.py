"""Each check is made to fail for real, as far as a machine without a GPU can; the rest on what a driver would say."""

from __future__ import annotations

import datetime
import json
import os
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import trustme

from quire.app.doctor.files import check_certificate, check_writable
from quire.app.doctor.finding import FAIL, GIB, OK, WARN, Finding
from quire.app.doctor.gpu import Gpu, check_compiler, check_gpus, gpus_needed, parse, visible
from quire.app.doctor.host import EARLIEST, check_clock, check_files, check_shared_memory
from quire.app.doctor.model import check_gpu_memory, check_host_memory, check_model, check_packed_weights
from quire.app.doctor.ports import check_ports
from quire.app.doctor.report import table
from quire.app.doctor.versions import check_python, check_versions
from quire.app.settings import ServeSettings
from quire.engine.config import EngineArgs
from quire.engine.memory_need import MemoryNeed
from quire.engine.weights.locate import resolve_model

SMI = """\
0, GPU-aaaa1111, NVIDIA H200, 143771, 143000, 580.95.05
1, GPU-bbbb2222, NVIDIA H200, 143771, 1000, 580.95.05
"""
GPUS = parse(SMI)


def doctor(*flags: str, wrapper: str = "", **environment: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Its exit code, and its findings by what they are about."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("QUIRE_", "VLLM_"))}
    command = f"{wrapper} exec '{sys.executable}' -m quire doctor --json \"$@\""
    done = subprocess.run(["bash", "-c", command, "bash", "--port", "0", *flags], env=env | environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] == (done.returncode == 0)
    found: dict[str, list[dict[str, str]]] = {}
    for finding in report["findings"]:
        found.setdefault(finding["check"], []).append(finding)
        assert finding["advice"] or finding["verdict"] == OK
    return done.returncode, found


def test_a_sound_machine_is_told_so(tmp_path: Path) -> None:
    code, found = doctor("--run-dir", str(tmp_path / "run"))
    assert code == 0
    assert found["model"][0]["verdict"] == found["memory"][0]["verdict"] == found["port"][0]["verdict"] == OK
    assert not (tmp_path / "run").exists(), "looking leaves nothing behind"


def test_what_would_keep_the_server_from_starting_is_found_at_once(tmp_path: Path) -> None:
    keys, readable, not_a_dir = tmp_path / "keys.yaml", tmp_path / "tls.pem", tmp_path / "file"
    keys.write_text("[]")
    keys.chmod(0o666)
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(readable))
    readable.chmod(0o644)
    not_a_dir.write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, found = doctor(
            "--port", str(taken.getsockname()[1]), "--host", "127.0.0.1", "--api-key-file", str(keys),
            "--ssl-certfile", str(readable), "--ssl-keyfile", str(readable), "--run-dir", str(not_a_dir),
            "--max-model-len", "8000", "--kv-cache-memory-bytes", "99999999", "--device", "cuda",
            "--audit-log", str(tmp_path / "no" / "audit"),
            wrapper="ulimit -n 512;")
    assert code == 1
    for check in ("port", "key file", "certificate", "run directory", "GPU", "memory", "file limit", "audit log"):
        assert [finding["verdict"] for finding in found[check]] == [FAIL], check


def test_wrong_settings_are_findings_and_the_machine_is_looked_at_all_the_same() -> None:
    code, found = doctor("--dtype", "int3", "--blocksize", "7")
    assert code == 1
    assert [finding["verdict"] for finding in found["settings"]] == [FAIL, FAIL]
    assert "clock" in found


def test_a_model_that_is_not_there() -> None:
    assert [f.verdict for f in check_model(EngineArgs(model="/nowhere"), [])] == [FAIL]
    _, found = doctor("--model", "some/thing", HF_HOME="/nowhere")
    assert found["model"][0]["verdict"] == WARN


def test_several_engines_need_several_gpus_and_memory_on_each() -> None:
    args = EngineArgs(data_parallel_size=2, tensor_parallel_size=2)
    assert gpus_needed(args) == 4
    verdicts = {f.check: f.verdict for f in check_gpus(GPUS, "", "auto", gpus_needed(args))}
    assert verdicts["GPUs"] == FAIL
    assert verdicts["GPU 0"] == OK
    assert "GPUs" not in {f.check for f in check_gpus(GPUS, "", "auto", 2)}
    assert [f.verdict for f in check_model(EngineArgs(data_parallel_size=2), GPUS)][1:] == [OK, OK]
    one, two = (check_host_memory(EngineArgs(data_parallel_size=n), MemoryNeed(2 * GIB, GIB // 4), 1024, 3 * GIB)
                for n in (1, 2))
    assert (one.verdict, two.verdict) == (OK, FAIL)
    half = EngineArgs(tensor_parallel_size=2, kv_cache_memory_bytes=GIB)
    need = MemoryNeed.of(half, resolve_model(half), "float32", 3 * GIB)
    assert need.cache == 2 * GIB, "each rank has its own"
    assert [check_host_memory(half, need, 1024, n * GIB).verdict for n in (2, 3)] == [FAIL, OK]


@pytest.mark.parametrize(("flag", "value", "check", "said"), [
    ("--tokenizer", "/none", "tokenizer", "--tokenizer: /none is neither a directory nor a file"),
    ("--tokenizer", "/", "tokenizer", "--tokenizer: / holds no tokenizer files"),
    ("--chat-template", "{{ foo", "tokenizer", "The chat template is not valid Jinja"),
    ("--max-model-len", "9999", "model", "9999 is more than the 8192 positions"),
    ("--tensor-parallel-size", "2", "model", "the number of KV heads (3) does not divide by 2")])
def test_what_serve_would_refuse_is_found(flag: str, value: str, check: str, said: str) -> None:
    code, found = doctor(flag, value)
    assert code == 1
    assert [finding["says"] for finding in found[check] if said in finding["says"]]
    served = subprocess.run([sys.executable, "-m", "quire", "serve", "--port", "0", flag, value], capture_output=True,
                            text=True, timeout=60, check=False)
    assert served.returncode == 2
    assert said in served.stderr
    assert "Traceback" not in served.stderr


def test_a_model_whose_weights_are_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 64, "vocab_size": 128,
        "num_hidden_layers": 1, "num_attention_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048}))
    args = EngineArgs(model=str(tmp_path), skip_tokenizer_init=True)
    assert [f.verdict for f in check_model(args, [])] == [OK, FAIL]
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    assert [f.verdict for f in check_model(args, [])] == [OK, FAIL]
    (tmp_path / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    assert [f.verdict for f in check_model(args, [])] == [OK, OK]
    assert check_model(args, GPUS)[1].check == "GPU memory"


@pytest.mark.parametrize(("certificate", "scheme"), [(None, "http"), ("tls.pem", "https")])
def test_a_free_port_is_told_by_its_address(certificate: str | None, scheme: str) -> None:
    [finding] = check_ports(ServeSettings(host="127.0.0.1", port=0, ssl_certfile=certificate, ssl_keyfile=certificate))
    assert finding.verdict == OK
    assert finding.says.startswith(f"{scheme}://127.0.0.1:")


def test_an_expired_certificate_and_one_that_will_be(tmp_path: Path) -> None:
    path = tmp_path / "tls.pem"

    def verdicts(days: float) -> list[str]:
        not_after = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
        cert = trustme.CA().issue_cert("localhost", not_before=not_after - datetime.timedelta(days=30),
                                       not_after=not_after)
        cert.private_key_and_cert_chain_pem.write_to_path(str(path))
        path.chmod(0o600)
        settings = ServeSettings(ssl_certfile=str(path), ssl_keyfile=str(path))
        return [f.verdict for f in check_certificate(settings, datetime.datetime.now().timestamp())]

    assert [verdicts(days) for days in (-1, 5, 29)] == [[FAIL], [WARN], [OK]]


def test_keys_that_end_soon(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.touch(0o600)
    now = datetime.datetime.now(datetime.timezone.utc)
    path.write_text(json.dumps([
        {"name": name, "sha256": digit * 64, "created": now.isoformat(),
         "not_after": (now + datetime.timedelta(days=days)).isoformat()}
        for name, digit, days in (("old", "1", -1), ("soon", "2", 3), ("fine", "3", 90))]))
    code, found = doctor("--api-key-file", str(path), "--host", "127.0.0.1")
    assert code == 0
    assert [(f["verdict"], name in f["says"]) for f, name in zip(found["key file"], ("3 key", "old", "soon"))] == [
        (OK, True), (WARN, True), (WARN, True)]


@pytest.mark.parametrize(("limit", "verdict"), [(256, FAIL), (1024, WARN), (65536, OK)])
def test_file_limit(limit: int, verdict: str) -> None:
    assert check_files(limit).verdict == verdict


def test_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        f_blocks, f_frsize = 16384, 4096  # 64 MiB, what containers get where nobody says

    monkeypatch.setattr(os, "statvfs", lambda path: Small())
    assert [check_shared_memory(n).verdict for n in (0, 1, 2)] == [OK, OK, WARN]
    monkeypatch.undo()
    assert check_shared_memory(1, "/nowhere").verdict == WARN


def test_a_clock_that_was_never_set() -> None:
    assert [check_clock(t).verdict for t in (0, EARLIEST)] == [FAIL, OK]


def test_a_directory_that_cannot_be_written_to() -> None:
    assert check_writable("cache", "/proc/nothing/here", "elsewhere").verdict == FAIL


def test_the_gpus_that_cuda_would_show() -> None:
    assert [gpu.total_bytes for gpu in GPUS] == [143771 * 2**20] * 2
    shown = {wanted: [gpu.index for gpu in visible(GPUS, wanted)] for wanted in ("", "1", "1,0", "0,-1,1", "GPU-bb")}
    assert shown == {"": [], "1": [1], "1,0": [1, 0], "0,-1,1": [0], "GPU-bb": [1]}
    assert visible(GPUS, None) == GPUS


@pytest.mark.parametrize(("device", "gpus", "trouble", "verdicts"), [
    ("auto", GPUS[:1], "", [OK, OK]), ("auto", [], "", [OK]), ("cuda", [], "", [FAIL]),
    ("auto", [], "driver mismatch", [FAIL]), ("cpu", [], "driver mismatch", [WARN]), ("cpu", GPUS, "", [OK])])
def test_gpu(device: str, gpus: list[Gpu], trouble: str, verdicts: list[str]) -> None:
    assert [f.verdict for f in check_gpus(gpus, trouble, device)] == verdicts


def test_triton_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert check_compiler(None).verdict == check_compiler("gcc-99").verdict == FAIL


@pytest.mark.parametrize(("arguments", "verdict", "said"), [
    ({}, OK, "leaves"),
    ({"max_model_len": 8192}, OK, "leaves"),
    ({"gpu_memory_utilization": 0.001}, FAIL, "leaves"),
    ({"kv_cache_memory_bytes": 1 << 20}, WARN, "tokens"),
    ({"kv_cache_memory_bytes": 1 << 20, "max_model_len": 4096}, FAIL, "--max-model-len 4096"),
    ({"kv_cache_memory_bytes": 200 << 30}, FAIL, "leaves")])
def test_gpu_memory_against_the_model(arguments: dict[str, Any], verdict: str, said: str) -> None:
    args = EngineArgs(**arguments)
    finding = check_gpu_memory(args, resolve_model(args), GIB // 2, 23040, GPUS[0])
    assert finding.verdict == verdict, finding
    assert said in finding.says


def test_a_gpu_that_others_filled_is_no_room() -> None:
    full = check_gpu_memory(EngineArgs(), resolve_model(EngineArgs()), 2 * GIB, 23040, GPUS[1])
    assert full.verdict == FAIL
    assert "taken by others" in full.says


def test_a_cache_larger_than_the_memory_fails_and_its_flag_is_named() -> None:
    args = EngineArgs(kv_cache_memory_bytes=400 * GIB)
    for finding in (check_host_memory(args, MemoryNeed(GIB, 400 * GIB), 1024, 20 * GIB),
                    check_gpu_memory(args, resolve_model(args), GIB, 1024, GPUS[0])):
        assert finding.verdict == FAIL
        assert "--kv-cache-memory-bytes" in finding.advice


def test_a_context_that_was_asked_for_must_fit_and_one_that_was_not_gives_way() -> None:
    found = []
    for length in (8192, None):
        args = EngineArgs(max_model_len=length)
        need = MemoryNeed.of(args, resolve_model(args), "float32", GIB)
        found.append(check_host_memory(args, need, 46080, need.weights + 300 * 2**20))
    asked, not_asked = found
    assert (asked.verdict, not_asked.verdict) == (FAIL, OK)


def test_packed_weights_on_a_cpu_want_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert check_packed_weights().verdict == OK
    monkeypatch.setenv("PATH", str(tmp_path))
    found = check_packed_weights()
    assert found.verdict == WARN
    assert "no C compiler here" in found.says


@pytest.mark.parametrize(("packages", "driver", "verdicts"), [
    ({"torch": "2.5.1+cu121", "triton": "3.1.0"}, "530.1", [OK, OK]),
    ({"torch": "2.5.1+cu121", "triton": "3.1.0"}, "515.1", [OK, OK, FAIL]),
    ({"torch": "2.9.0", "triton": "3.5", "nvidia-cuda-runtime-cu12": "12.8"}, "515.1", [OK, OK, FAIL]),
    ({"torch": "2.13.0", "triton": "3.6", "nvidia-cuda-runtime": "13.0.1"}, "570.1", [OK, OK, FAIL]),
    ({"torch": "2.5.1", "triton": "3.9.0", "nvidia-cublas-cu12": "12.9.3"}, "515.1", [OK, OK, OK, FAIL]),
    ({"torch": "2.5.1", "triton": "3.9.0", "nvidia-cublas-cu12": "12.9.3"}, "530.1", [OK, OK, OK]),
    ({"torch": "2.13.0+cu130"}, "580.1", [OK, FAIL]),
    ({"torch": "2.13.0+cpu"}, "580.1", [FAIL]),
    ({"torch": "2.4.0"}, "580.1", [FAIL]),
    ({}, "580.1", [FAIL])])
def test_versions(packages: dict[str, str], driver: str, verdicts: list[str]) -> None:
    def installed(name: str) -> str:
        if name not in packages:
            raise PackageNotFoundError
        return packages[name]

    gpu = Gpu(0, "GPU-1", "g", GIB, GIB, driver)
    assert [f.verdict for f in check_versions([gpu], installed)[1:]] == verdicts


def test_python_versions() -> None:
    assert [check_python(v).verdict for v in ((3, 9, 1), (3, 10, 0), (3, 13, 9), (3, 14, 0))] == [WARN, OK, OK, WARN]


def test_the_table_is_plain_unless_a_terminal_reads_it() -> None:
    findings = [Finding("a", OK, "good"), Finding("longer", FAIL, "bad", "do this " * 30)]
    lines = table(findings, coloured=False)
    assert lines[0] == "ok    a       good"
    assert lines[-1] == "1 failed, 0 warning(s)"
    assert max(map(len, lines)) <= 110
    assert "\033" not in "".join(lines)
    assert "\033[31mfail" in "".join(table(findings, coloured=True))
