"""Log-probabilities on CUDA: few rows ask for them, and torch's own kernels serve. Contract: kernels/reference."""

from __future__ import annotations

from quire.kernels.reference.logprobs import logprobs

__all__ = ["logprobs"]
