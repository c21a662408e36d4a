"""The systemd unit, its files and its scripts, by systemd's own checks; nothing here needs a running systemd.

What the sandbox leaves the server to work with is seen in test_systemd_sandbox.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import pytest
import setuptools

from quire.app.keys.key_file import load_key_file
from quire.app.launcher import EXIT_CONFIG, STOP_ENGINE_S, STOP_HTTP_MARGIN_S
from quire.app.options import OPTIONS, variable
from quire.app.sd_notify import LOADING_S, REPEAT_S
from quire.app.settings import ServeSettings, flag
from tests.deploy.systemd_unit import ROOT, SYSTEMD, UNIT, Unit

NAMES = ("quire.service", "quire@.service")
DROP_INS = sorted((SYSTEMD / "drop-ins").glob("*.conf"))
EXAMPLES = sorted(SYSTEMD.glob("*.example"))
SCRIPTS = sorted(SYSTEMD.glob("*.sh"))
EXPOSURE = 15  # tenths
OTHER_VARIABLES = {"CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE"}


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=60)


def installed(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Into `root`, with the environment that these tests run in in place of one of its own."""
    venv = root.parent / "venv"
    if not venv.exists():
        (venv / "bin").mkdir(parents=True)
        for name in ("quire", "python"):
            (venv / "bin" / name).symlink_to("/bin/true")
    done = run(SYSTEMD / "install.sh", "--root", root, "--venv", venv, *options)
    assert done.returncode == 0, done.stderr
    return done


def tree(root: Path) -> dict[str, str]:
    """What lies below `root`: modes, links and contents, and when files and links were written last."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        content = path.readlink() if path.is_symlink() else crc32(path.read_bytes()) if path.is_file() else ""
        written = "" if path.is_dir() and not path.is_symlink() else status.st_mtime_ns
        found[str(path.relative_to(root))] = f"{status.st_mode:o} {written} {content}"
    return found


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with the unit under both names; what they start is there."""
    for name in NAMES:
        (tmp_path / name).write_text(UNIT.read_text().replace("/opt/quire/current/bin/quire", "/bin/true"))
    return tmp_path


def with_drop_in(units: Path, name: str, drop_in: Path | None) -> None:
    if drop_in is not None:
        (units / f"{name}.d").mkdir()
        shutil.copy(drop_in, units / f"{name}.d")


# The unit


@pytest.mark.parametrize("drop_in", [None, *DROP_INS], ids=lambda path: path.name if path else "alone")
@pytest.mark.parametrize("name", NAMES)
def test_systemd_knows_every_line_and_finds_nothing_to_say(units: Path, name: str, drop_in: Path | None) -> None:
    with_drop_in(units, name, drop_in)
    done = run(program("systemd-analyze"), "verify", f"./{name}", cwd=units)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_a_misspelt_line_would_be_seen(units: Path) -> None:
    (units / NAMES[0]).write_text((units / NAMES[0]).read_text().replace("WatchdogSec", "WatchDogSec"))
    assert "WatchDogSec" in run(program("systemd-analyze"), "verify", f"./{NAMES[0]}", cwd=units).stderr


@pytest.mark.parametrize("drop_in", [None, *DROP_INS], ids=lambda path: path.name if path else "alone")
@pytest.mark.parametrize("name", NAMES)
def test_the_sandbox_scores_as_promised(units: Path, name: str, drop_in: Path | None) -> None:
    with_drop_in(units, name, drop_in)
    done = run(program("systemd-analyze"), "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager",
               f"./{name}", cwd=units)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_systemd_starts_is_a_command_of_ours_with_flags_that_exist() -> None:
    path, command, *flags = Unit(UNIT).one("ExecStart").split()
    assert (path, command) == ("/opt/quire/current/bin/quire", "serve")
    known = {flag(name) for name in OPTIONS} | {"--config"}
    assert [word for word in flags if word.startswith("--") and word.partition("=")[0] not in known] == []


def test_the_server_has_time_to_drain_and_is_not_killed_for_a_slow_load() -> None:
    unit, defaults = Unit(UNIT), ServeSettings()
    example = dict(re.findall(r"^#?(\w+)=(.*)$", (SYSTEMD / "quire.env.example").read_text(), re.MULTILINE))
    drain_s = defaults.drain_delay + defaults.shutdown_timeout + STOP_HTTP_MARGIN_S + STOP_ENGINE_S
    assert unit.seconds("TimeoutStopSec") > drain_s
    assert unit.seconds("TimeoutStopSec") > float(example["QUIRE_DRAIN_DELAY"]) + float(
        example["QUIRE_SHUTDOWN_TIMEOUT"]) + STOP_HTTP_MARGIN_S
    assert unit.seconds("TimeoutStartSec") >= LOADING_S > REPEAT_S


def test_the_watchdog_is_slower_than_the_launchers_own_cures() -> None:
    """It pings twice in each period, whatever the engine does short of being beyond help."""
    assert 10 <= Unit(UNIT).seconds("WatchdogSec") <= ServeSettings().engine_stall_timeout


def test_failures_are_tried_again_but_not_for_ever_and_not_wrong_settings() -> None:
    unit = Unit(UNIT)
    assert unit.one("Restart") == "on-failure"
    assert unit.one("RestartPreventExitStatus") == str(EXIT_CONFIG)
    slow_load_s = 300.0
    tries = int(unit.one("StartLimitBurst"))
    assert tries * (slow_load_s + unit.seconds("RestartSec")) < unit.seconds("StartLimitIntervalSec")


def test_everything_that_the_launcher_needs_of_systemd_is_said() -> None:
    unit = Unit(UNIT)
    for key, value in (("Type", "notify"), ("NotifyAccess", "main"), ("KillMode", "mixed"),
                       ("ExecReload", "/bin/kill -HUP $MAINPID"), ("OOMPolicy", "continue"), ("LimitNOFILE", "65536")):
        assert unit.one(key) == value


def test_instances_share_models_and_nothing_else() -> None:
    one, two = Unit(UNIT, "quire@gpu0"), Unit(UNIT, "quire@gpu1")
    assert one.one("RuntimeDirectory") != two.one("RuntimeDirectory")
    assert one.environment["QUIRE_AUDIT_LOG"] != two.environment["QUIRE_AUDIT_LOG"]
    assert one.all("EnvironmentFile") == ["-/etc/quire/quire.env", "-/etc/quire/quire@gpu0.env"]
    assert one.environment["HF_HOME"] == two.environment["HF_HOME"]


def test_credentials_are_those_that_the_server_looks_for_and_may_be_missing() -> None:
    """A source with a path would have to exist."""
    credentials = dict(value.split(":") for value in Unit(UNIT).all("LoadCredential"))
    assert set(credentials) == {"VLLM_API_KEY", "quire-keys", "HF_TOKEN"}
    assert Unit(UNIT).environment["HF_TOKEN_PATH"] == "/run/credentials/quire.service/HF_TOKEN"
    assert not any("/" in source for source in credentials.values())


def test_calls_that_the_server_and_torch_need_pass_the_filter_and_dangerous_ones_do_not() -> None:
    program("systemd-analyze")
    allowed = Unit(UNIT).allowed_calls()
    assert {"pidfd_open", "pidfd_send_signal", "clone3", "execve", "prctl", "memfd_create", "mprotect", "mlock",
            "mbind", "set_mempolicy", "sched_setaffinity", "flock", "eventfd2", "sendmsg"} <= allowed
    assert not allowed & {"mount", "ptrace", "bpf", "init_module", "kexec_load", "reboot", "setuid", "chroot", "chown",
                          "perf_event_open", "settimeofday", "swapon", "iopl"}


# Settings


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_variable_of_the_examples_is_a_setting(example: Path) -> None:
    found = re.findall(r"^#?([A-Z][A-Z0-9_]+)=", example.read_text(), re.MULTILINE)
    assert found and set(found) <= {variable(name) for name in OPTIONS} | OTHER_VARIABLES


@pytest.mark.parametrize("source", [UNIT, *DROP_INS], ids=lambda path: path.name)
def test_every_variable_of_ours_in_units_is_a_setting(source: Path) -> None:
    ours = [name for name in Unit(source).environment if name.startswith("QUIRE_")]
    assert set(ours) <= {variable(name) for name in OPTIONS}


@pytest.mark.parametrize("all_lines", [False, True], ids=["as shipped", "every line in use"])
def test_quire_check_accepts_the_example(tmp_path: Path, all_lines: bool) -> None:
    text = (SYSTEMD / "quire.env.example").read_text()
    lines = dict(re.findall(rf"^{'#?' if all_lines else ''}([A-Z][A-Z0-9_]+)=(.*)$", text, re.MULTILINE))
    for name in ("QUIRE_SSL_CERTFILE", "QUIRE_SSL_KEYFILE", "QUIRE_API_KEY_FILE"):  # `check` reads these
        lines.pop(name, None)
    done = subprocess.run([sys.executable, "-m", "quire", "check"], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, env={"PATH": os.environ["PATH"]} | lines)
    assert done.returncode == 0, done.stdout + done.stderr


# Installing


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    done = run(program("shellcheck"), script)
    assert done.returncode == 0, done.stdout


def test_installing_again_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    installed(root)
    before = tree(root)
    installed(root)
    assert tree(root) == before
    assert root.joinpath("usr/local/lib/systemd/system/quire.service").read_text() == UNIT.read_text()


def test_a_dry_run_does_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert "quire.service" in installed(root, "--dry-run").stdout
    assert not root.exists()


def test_settings_of_the_operator_survive_an_upgrade(tmp_path: Path) -> None:
    root = tmp_path / "root"
    installed(root)
    settings = root / "etc/quire/quire.env"
    settings.write_text("QUIRE_PORT=9999\n")
    installed(root)
    assert settings.read_text() == "QUIRE_PORT=9999\n"


def test_what_was_installed_before_is_a_command_away(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    installed(root)
    shutil.copytree(tmp_path / "venv", other, symlinks=True)
    current = root / "opt/quire/current"
    before = current.readlink()
    assert run(SYSTEMD / "install.sh", "--root", root, "--venv", other).returncode == 0
    assert current.readlink() == other
    assert run(SYSTEMD / "install.sh", "--root", root, "--rollback").returncode == 0
    assert current.readlink() == before
    assert run(SYSTEMD / "install.sh", "--root", root, "--rollback").returncode == 0
    assert current.readlink() == other


def test_rolling_back_without_a_version_before_says_so(tmp_path: Path) -> None:
    root = tmp_path / "root"
    installed(root)
    done = run(SYSTEMD / "install.sh", "--root", root, "--rollback")
    assert (done.returncode, done.stderr) == (2, "install.sh: there is no version before this one\n")


@pytest.mark.parametrize("options", [["--frobnicate"], ["--venv", "/nonexistent"], ["--locks", "/"], ["--wheel"]])
def test_wrong_options_change_nothing(tmp_path: Path, options: list[str]) -> None:
    root = tmp_path / "root"
    assert run(SYSTEMD / "install.sh", "--root", root, *options).returncode != 0
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_uninstalling_leaves_settings_and_no_other_file_of_ours(tmp_path: Path) -> None:
    root = tmp_path / "root"
    installed(root)
    assert run(SYSTEMD / "uninstall.sh", "--root", root).returncode == 0
    assert [str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()] == ["etc/quire/quire.env"]
    assert run(SYSTEMD / "uninstall.sh", "--root", root).returncode == 0, "twice is no error"
    assert run(SYSTEMD / "uninstall.sh", "--root", root, "--purge").returncode == 0
    assert [path for path in root.rglob("*") if not path.is_dir()] == []


def test_account_and_folders_are_made_from_the_installed_files(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to the new account")
    root = tmp_path / "root"
    installed(root)
    for _ in range(2):
        for command in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
            done = run(program(command[0]), *command[1:], f"--root={root}", "quire.conf")
            assert done.returncode == 0, done.stderr
    uid, gid = root.joinpath("etc/passwd").read_text().split(":")[2:4]
    modes = {path: root.joinpath(path).stat() for path in ("etc/quire", "etc/quire/keys.yaml", "var/lib/quire",
                                                           "etc/credstore")}
    assert {path: (f"{s.st_mode & 0o777:o}", s.st_uid, s.st_gid) for path, s in modes.items()} == {
        "etc/quire": ("750", 0, int(gid)), "etc/quire/keys.yaml": ("640", 0, int(gid)),
        "var/lib/quire": ("755", int(uid), int(gid)), "etc/credstore": ("700", 0, 0)}
    assert load_key_file(str(root / "etc/quire/keys.yaml")) == []


def planned(tmp_path: Path, python: Path, path: str, *options: str) -> str:
    """The environment that would be installed."""
    command = [SYSTEMD / "install.sh", "--root", tmp_path / "root", "--dry-run", "--python", python, *options]
    done = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return re.findall(r"^Setting up .*/(\S+)$", done.stdout, re.MULTILINE)[0]


def test_another_python_or_a_gpu_makes_another_environment(tmp_path: Path) -> None:
    """Run again after either came, it repairs what is there."""
    path, with_gpu = str(os.environ["PATH"]), tmp_path / "gpu"
    python = tmp_path / "python3"  # the same name, whichever version it is
    python.symlink_to(os.path.realpath(sys.executable))
    with_gpu.mkdir()
    (with_gpu / "nvidia-smi").symlink_to("/bin/true")
    without = planned(tmp_path, python, path, "--cpu")
    assert planned(tmp_path, python, path, "--cpu") == without
    gpu = planned(tmp_path, python, f"{with_gpu}:{path}")
    assert gpu != without
    assert planned(tmp_path, python, f"{with_gpu}:{path}", "--cpu") == without
    if shutil.which("nvidia-smi") is None:
        assert planned(tmp_path, python, path) == without
    python.unlink()
    python.write_text("#!/bin/sh\n"
                      f'case $2 in *base_prefix,*) echo /usr 3.99 ;; *) exec {sys.executable} "$@" ;; esac\n')
    python.chmod(0o755)
    assert planned(tmp_path, python, path, "--cpu") != without


@pytest.fixture
def no_locks(tmp_path: Path) -> Path:
    """What Quire needs is left out, since tests fetch nothing."""
    locks = tmp_path / "locks"
    locks.mkdir()
    for name in ("base", "torch-cpu", "torch", "cuda", "model"):
        (locks / f"{name}.txt").write_text("# none\n")
    return locks


def install(root: Path, locks: Path, *options: str | Path) -> Path:
    """A real environment, with the setuptools of these tests in it; where it is."""
    tools = locks.parent / "tools"
    tools.mkdir(exist_ok=True)
    if not (tools / "setuptools").exists():
        (tools / "setuptools").symlink_to(Path(setuptools.__file__).parent)
    done = subprocess.run(
        [SYSTEMD / "install.sh", "--root", root, "--locks", locks, "--python", sys.executable, "--cpu", *options],
        env=os.environ | {"PYTHONPATH": str(tools)}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return (root / "opt/quire" / (root / "opt/quire/current").readlink()).resolve()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_checkout_is_installed_whole_and_under_one_name(tmp_path: Path, no_locks: Path) -> None:
    release = install(tmp_path / "root", no_locks)
    assert (release / "bin/quire").exists() and not (release / "source").exists()
    (packages,) = release.glob("lib/python*/site-packages")
    names = {path.name for path in packages.iterdir() if path.suffix != ".dist-info"}
    assert names - {"pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth"} == {"quire"}
    tracked = run("git", "ls-files", "*.py", cwd=ROOT).stdout.split()
    ours = {f"quire/{name}" for name in tracked if name.split("/")[0] in ("app", "engine", "kernels", "loadtest")}
    installed = {str(path.relative_to(packages)) for path in (packages / "quire").rglob("*")}
    assert ours - installed == set()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_each_version_gets_an_environment_once_and_the_last_two_stay(tmp_path: Path, no_locks: Path) -> None:
    """Of a real wheel."""
    source, root = tmp_path / "source", tmp_path / "root"
    for name in ("app", "engine", "kernels", "loadtest"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "quire", source / "quire", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
               "--wheel-dir", tmp_path, source)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")

    first = install(root, no_locks, "--wheel", wheel)
    assert (first / "bin/quire").exists()
    written = tree(root)
    assert install(root, no_locks, "--wheel", wheel) == first and tree(root) == written
    releases = [first]
    for number in range(2):
        (no_locks / "base.txt").write_text(f"# {number}\n")
        releases.append(install(root, no_locks, "--wheel", wheel))
        assert (root / "opt/quire" / (root / "opt/quire/previous").readlink()).resolve() == releases[-2]
    assert set((root / "opt/quire/releases").iterdir()) == set(releases[1:])
    assert run(SYSTEMD / "uninstall.sh", "--root", root).returncode == 0
    assert not (root / "opt/quire").exists()
