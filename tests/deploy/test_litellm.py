"""LiteLLM's proxy with the shipped configuration in front of two servers, as the pod runs it: read-only but for /tmp.

`make check-deploy` brings LiteLLM, in an environment of its own. Its container image is not looked at.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.deploy.kustomize import K8S, ROOT, TWO
from tests.deploy.test_k8s_two_models import config, named
from tests.e2e.server import KEY, free_port, serving, until

LITELLM = ROOT / "build" / "litellm" / "bin"
MASTER_KEY = "sk-a-key-of-the-gateways-own"
LARGE, SMALL = "qwen2.5-7b-instruct", "qwen2.5-1.5b-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.skipif(
    not (LITELLM / "litellm").exists() or shutil.which("bwrap") is None, reason="`make check-deploy` brings LiteLLM")]


def test_the_version_that_is_tried_is_that_of_the_manifest() -> None:
    (container,) = named("Deployment", "litellm")["spec"]["template"]["spec"]["containers"]
    ask = "from importlib.metadata import version; print(version('litellm'))"
    told = subprocess.run([LITELLM / "python", "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    assert container["image"].endswith(f":v{told}")
    assert f"litellm[proxy]=={told}" in (ROOT / "Makefile").read_text()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address. Behind it, the small model is `large` and the large one `small`: both are the packaged one."""
    folder = tmp_path_factory.mktemp("litellm")
    (container,) = named("Deployment", "litellm")["spec"]["template"]["spec"]["containers"]
    port, text = free_port(), (K8S / "overlays" / TWO / "litellm" / "config.yaml").read_text()
    with serving("--served-model-name", LARGE, "-asc", "1") as large, \
            serving("--served-model-name", SMALL, "-asc", "1") as small:
        for name, server in (("quire-large", large), ("quire-small", small)):
            assert f"http://{name}:8000" in text
            text = text.replace(f"http://{name}:8000", server.url)
        (folder / "config.yaml").write_text(text)
        arguments = ["--config", "/etc/litellm/config.yaml", "--port", str(port)]
        assert [*arguments[:3], "4000"] == container["args"]
        variables = {each["name"]: each.get("value", "") for each in container["env"]} | {
            "LITELLM_MASTER_KEY": MASTER_KEY, "QUIRE_API_KEY": KEY}
        process = subprocess.Popen([
            "bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/etc",
            "--ro-bind", str(ROOT), str(ROOT), "--ro-bind", str(folder / "config.yaml"), "/etc/litellm/config.yaml",
            "--unshare-user", "--uid", "10001", "--gid", "10001", "--die-with-parent",
            "--clearenv", *(word for pair in variables.items() for word in ("--setenv", *pair)),
            "--", LITELLM / "python", LITELLM / "litellm", *arguments, "--host", "127.0.0.1"])
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: process.poll() is not None or answers(f"{url}/health/readiness"), 120)
            assert process.poll() is None
            assert answers(f"{url}/health/liveliness")
            yield url
        finally:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def client(gateway: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway}/v1", api_key=MASTER_KEY, max_retries=0, timeout=60)


def test_both_models_are_listed_under_one_address(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {model["model_name"] for model in config()["model_list"]}


@pytest.mark.parametrize("model", [LARGE, SMALL])
def test_each_model_answers_whole_and_in_pieces(client: openai.OpenAI, model: str) -> None:
    options = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 16}
    whole = client.chat.completions.create(**options)  # type: ignore[call-overload]
    assert "Paris" in whole.choices[0].message.content
    assert whole.usage.completion_tokens > 0 and whole.model == model
    pieces = list(client.chat.completions.create(  # type: ignore[call-overload]
        **options, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) \
        == whole.choices[0].message.content
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    text = client.completions.create(model=model, prompt="The capital of France is", max_tokens=4, temperature=0)
    assert "Paris" in text.choices[0].text


def test_mistakes_come_back_as_the_servers_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(model=LARGE, messages=QUESTION, max_tokens=10**6)  # type: ignore[arg-type]
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match="no-such-model"):
        client.chat.completions.create(model="no-such-model", messages=QUESTION)  # type: ignore[arg-type]


def test_who_does_not_have_the_gateways_key_gets_nothing(client: openai.OpenAI) -> None:
    for key in (KEY, "sk-wrong"):
        with pytest.raises(openai.APIStatusError):  # without a database it says 400, not 401
            client.with_options(api_key=key).models.list()
