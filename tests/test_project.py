"""What holds for the project as a whole: its locks, its documents and its promises about imports."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import quire

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = ("app", "engine", "kernels", "loadtest")


def run(code: str) -> str:
    """What a fresh interpreter prints for `code`, run in the project's root."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_is_exact_and_hashed_and_names_no_address(lock):
    text = lock.read_text()
    assert "://" not in text and "index-url" not in text and "find-links" not in text
    entries = re.findall(r"^\w.*(?:\n .*)*", text, re.MULTILINE)
    assert entries
    assert [entry for entry in entries if not re.match(r"[\w.-]+==\S+", entry) or "--hash=sha256:" not in entry] == []


def test_one_version_everywhere():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared and declared.group(1) == quire.__version__
    assert f"## {quire.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_a_cpu_engine_needs_no_triton():
    """What `make install` sets up has none; the test environment does."""
    assert "Paris" in run("""
import sys
sys.modules["triton"] = None
from quire import LLM, SamplingParams
llm = LLM(max_model_len=64, cpu_threads=1)
print(llm.generate(["The capital of France is"], SamplingParams(temperature=0, max_tokens=4), use_tqdm=False))
""")


def test_the_public_names_cost_no_torch():
    loaded = run("import sys, quire; quire.SamplingParams, quire.EngineArgs, quire.LLM, quire.AsyncLLMEngine;"
                 "print(sorted({'torch', 'transformers', 'triton'} & set(sys.modules)))")
    assert loaded == "[]"


def test_modules_of_others_may_have_the_names_of_our_folders(tmp_path: Path) -> None:
    for name in PACKAGES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')\n")
    env = os.environ | {"PYTHONPATH": "."}
    code = "from quire import LLM; from quire.app.cli import main; main(['version'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True,
                          capture_output=True, timeout=100)
    assert (done.returncode, done.stdout.strip()) == (0, f"quire {quire.__version__}"), done.stderr


def test_a_wheel_has_one_import_name_and_all_that_is_ours(tmp_path: Path) -> None:
    build = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path]
    clone = tmp_path / "checkout"  # so that a build's leavings do not get into this one
    clone.mkdir()
    for name in (*PACKAGES, "quire"):
        shutil.copytree(ROOT / name, clone / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    subprocess.run([sys.executable, "-m", *build, clone], check=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {name.partition("/")[0] for name in names} == {"quire", f"quire-{quire.__version__}.dist-info"}
    files = {str(path.relative_to(ROOT)) for name in PACKAGES for kind in ("*.py", "*.css")
             for path in (ROOT / name).rglob(kind)}
    assert {f"quire/{name}" for name in files} <= set(names)
    code = f"""
import sys, importlib.util
sys.path.insert(0, {str(tmp_path / "site")!r})
import quire
print(quire.__version__, *[name for name in {PACKAGES} if importlib.util.find_spec(name)])
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], text=True, capture_output=True, timeout=100)
    assert done.stdout.strip() == quire.__version__, done.stderr


def test_the_package_kernels_is_bare():
    """transformers probes for a package of this name and its version."""
    body = ast.parse((ROOT / "kernels" / "__init__.py").read_text()).body
    assert all(isinstance(node, ast.Expr) for node in body), "a docstring and nothing else"


def test_transformers_still_imports_its_models_with_our_kernels_on_the_path():
    assert run("import quire.kernels; from transformers.models.llama.modeling_llama import LlamaForCausalLM;"
               "print(LlamaForCausalLM.__name__)") == "LlamaForCausalLM"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_in_documents_lead_somewhere(document):
    text = document.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    paths = [ROOT / path for path in re.findall(rf"`((?:{'|'.join(PACKAGES)}|tests|docs)/[\w./-]*\w/?)`", text)]
    missing = [link for link in links if link and not (document.parent / link).exists()]
    missing += [str(path.relative_to(ROOT)) for path in paths if not path.exists()]
    assert missing == []


def test_the_readme_lists_every_folder_of_the_tree():
    readme = (ROOT / "README.md").read_text()
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(p.is_file() for p in path.rglob("*"))}
    generated = {name for name in folders if name.startswith((".", "__")) or name.endswith(".egg-info")}
    assert [name for name in folders - generated - {"build", "dist"} if f"`{name}/`" not in readme] == []


def test_flags_in_documents_exist():
    from quire.app.options import OPTIONS
    from quire.app.settings import flag

    known = {flag(name) for name in OPTIONS} | {flag(f"no_{name}") for name in OPTIONS} | {"--config"}
    readme = (ROOT / "README.md").read_text()
    table = re.findall(r"^\| `(--[\w-]+)", readme, re.MULTILINE)
    assert table and [name for name in table if name not in known] == []


def test_hints_name_packages_that_an_index_has():
    """Quire itself is on none."""
    texts = [*(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")), *DOCUMENTS]
    pattern = re.compile(r"pip install [^\n]*?\bquire\b")
    assert [str(path) for path in texts if pattern.search(path.read_text())] == []
