"""Client programs as tutorials for such servers print them, against one server, with SDKs old and new.

The programs in `programs/` are complete as a reader would paste them; only address, key and model come from the
environment. Each SDK gets a virtual environment of its own, or a folder for npm's, that is deleted afterwards. Needs
package indexes, so it is no test of pytest's: `make check-clients`, or `python -m tests.clients.run [PROGRAM ...]`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from quire.engine.config import DEFAULT_MODEL
from tests.e2e.server import KEY, serving

PROGRAMS = Path(__file__).parent / "programs"
TIMEOUT_S = 600  # a reply without a limit may have 1024 tokens, and some machines make nine in a second


@dataclass(frozen=True)
class Check:
    program: str
    expected: tuple[str, ...]  # each must be in what it printed
    fails: bool = False  # the program is to end with a status other than 0
    key: str = KEY


IMAGE_REFUSED = ("messages[1].content[0]", "parts of type 'image_url' are not supported")
OPENAI = (
    Check("openai_completion.py", ()),
    Check("openai_chat.py", ("ChatCompletionMessage(", "role='assistant'")),
    Check("openai_chat_stream.py", ("pieces: ",)),
    Check("openai_image.py", ("BadRequestError: Error code: 400", *IMAGE_REFUSED), fails=True),
    Check("openai_chat.py", ("AuthenticationError: Error code: 401",), fails=True, key="wrong"),
)

ANTHROPIC = (
    Check("anthropic_messages.py", ("Message(", "role='assistant'", "stop_reason='")),
    Check("anthropic_tools.py", ("message_stop", "name='get_weather'", "input={'unit': '")),
    Check("anthropic_messages.py", ("AuthenticationError: Error code: 401", "authentication_error"), fails=True,
          key="wrong"),
)
TOOLS = Check("openai_tools.py", ("tool_calls get_weather {", "streamed: get_weather {", "Person(name=",
                                   "vectors: 2 576"))
RESPONSES = Check("openai_responses.py", ('get_weather {', '"city": "', "pieces: "))

# What is installed, and what runs with it.
SDKS: dict[tuple[str, ...], tuple[Check, ...]] = {
    (): (
        Check("curl_models.sh", ('"object":"list"', f'"id":"{DEFAULT_MODEL}"', '"max_model_len":1024')),
        Check("curl_completion.sh", ('"object":"text_completion"', '"completion_tokens":7')),
        Check("curl_chat_image.sh", ('"param":"messages[1].content[0]"', '"code":400', *IMAGE_REFUSED)),
    ),
    ("requests==2.34.2",): (Check("requests_completion.py", ()),),
    ("openai==0.28.1",): (Check("openai_before_v1.py", ("Completion result:", '"object": "text_completion"')),),
    ("openai==1.17.1", "httpx==0.27.2"): OPENAI,
    ("openai==1.54.4", "httpx==0.27.2"): OPENAI,
    ("openai==1.109.1",): (RESPONSES,),
    ("openai==3.52.0",): (*OPENAI, RESPONSES),
    ("openai==3.57.0",): (TOOLS,),
    ("anthropic==0.40.0", "httpx==0.27.2"): ANTHROPIC,
    ("anthropic==2.14.0",): ANTHROPIC,
    ("langchain-openai==1.7.3",): (Check("langchain_invoke.py", ()), Check("langchain_tools.py", (
        "sunny in ", "Person(name=", "vector: 576"))),
    ("litellm==1.110.2",): (Check("litellm_chat.py", ("pieces: ", "name='get_weather'")),),
    ("instructor==1.17.0",): (Check("instructor_extract.py", ("tool_call Person(name=", "json_schema_mode Person(")),),
    ("pydantic-ai-slim[openai]==2.68.0",): (Check("pydantic_ai_agent.py", ("Person(name=",)),),
    ("llama-index-llms-openai-like==0.8.1", "llama-index-embeddings-openai-like==0.4.0"): (
        Check("llama_index_chat.py", ("assistant: ", "Person(name=", "vector: 576")),),
    ("npm:openai@7.59.0",): (Check("openai_node.mjs", ("pieces: ", "'get_weather'", "response: ", "vectors: 2")),),
    ("npm:ai@7.0.173", "npm:@ai-sdk/openai-compatible@3.0.92", "npm:zod@4.6.7"): (
        Check("vercel_ai.mjs", ("pieces: ", "getWeather { city:", "object: { name:", "vector: 576")),),
}


def install(packages: Iterable[str], directory: Path) -> Path:
    """A place with `packages`, from which programs are run: the Python of a virtual environment, or npm's folder."""
    if of_npm := [package.removeprefix("npm:") for package in packages if package.startswith("npm:")]:
        directory.mkdir()
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *of_npm], cwd=directory, check=True)
        return directory
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    python = directory / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--quiet"]
    subprocess.run([*pip, *packages], check=True)
    return python


def run(check: Check, place: Path, base_url: str) -> tuple[bool, str]:
    """Whether the program did what is expected, and what it printed. `place` is as `install` returns it."""
    path = PROGRAMS / check.program
    folder = place if place.is_dir() else place.parent
    if path.suffix == ".mjs":  # Node looks for modules beside the program
        path = Path(shutil.copy(path, folder))
    program = {".sh": "sh", ".mjs": "node"}.get(path.suffix, str(place))
    env = {"PATH": os.environ["PATH"], "BASE_URL": base_url, "API_KEY": check.key, "MODEL": DEFAULT_MODEL,
           "PYTHONUTF8": "1", "NO_PROXY": "127.0.0.1"}
    try:
        done = subprocess.run([program, path], env=env, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return False, f"did not end within {TIMEOUT_S} s"
    printed = (done.stdout + (done.stderr if done.returncode else "")).strip()
    ok = (done.returncode != 0) == check.fails and bool(printed) and all(text in printed for text in check.expected)
    return ok, printed


def line(ok: bool, packages: tuple[str, ...], check: Check, printed: str) -> str:
    """The end of what was printed tells enough where all is well."""
    name = check.program if check.key == KEY else f"{check.program} with a wrong key"
    shown = " ".join(printed.split())[-140:] if ok else f"\n{printed}"
    return f"{'passed' if ok else 'FAILED'}  {' '.join(packages) or 'curl'}  {name}: {shown}"


def main(programs: list[str]) -> int:
    num_failed = 0
    with tempfile.TemporaryDirectory() as scratch, serving("--host", "127.0.0.1", "--max-model-len", "1024") as server:
        for i, (packages, checks) in enumerate(SDKS.items()):
            wanted = [check for check in checks if not programs or check.program in programs]
            if not wanted:
                continue
            place = install(packages, Path(scratch, str(i))) if packages else Path(sys.executable)
            for check in wanted:
                ok, printed = run(check, place, f"{server.url}/v1")
                num_failed += not ok
                print(line(ok, packages, check, printed), flush=True)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
