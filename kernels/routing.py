"""The choice of experts in Triton: one program a token. Contract: kernels/reference/routing.py."""

import torch
import triton
import triton.language as tl

from quire.kernels import launch, pdl

SCORINGS = {"softmax": 0, "sigmoid": 1}


def route(logits: torch.Tensor, num_chosen: int, *, scoring: str, renormalize: bool
          ) -> tuple[torch.Tensor, torch.Tensor]:
    num_tokens, num_experts = logits.shape
    ids = torch.empty((num_tokens, num_chosen), dtype=torch.int32, device=logits.device)
    weights = torch.empty((num_tokens, num_chosen), dtype=torch.float32, device=logits.device)
    if num_tokens:
        _route[(num_tokens,)](logits, ids, weights, logits.stride(0), EXPERTS=num_experts, CHOSEN=num_chosen,
                              EXPERTS_PADDED=triton.next_power_of_2(num_experts),
                              CHOSEN_PADDED=triton.next_power_of_2(num_chosen), SCORING=SCORINGS[scoring],
                              RENORMALIZE=renormalize, num_warps=1, **launch.early(logits.device))
    return ids, weights


@triton.jit
def _route(logits, ids, weights, stride, EXPERTS: tl.constexpr, CHOSEN: tl.constexpr, EXPERTS_PADDED: tl.constexpr,
           CHOSEN_PADDED: tl.constexpr, SCORING: tl.constexpr, RENORMALIZE: tl.constexpr, EARLY: tl.constexpr):
    pdl.begin(EARLY)
    token = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, EXPERTS_PADDED)
    places = tl.arange(0, CHOSEN_PADDED)
    row = tl.load(logits + token * stride + experts, mask=experts < EXPERTS, other=float("-inf")).to(tl.float32)
    if SCORING == 0:
        scores = tl.exp(row - tl.max(row, axis=0))
        scores = scores / tl.sum(scores, axis=0)
    else:
        scores = 1.0 / (1.0 + tl.exp(-row))
    left = tl.where(experts < EXPERTS, scores, -1.0)
    chosen = tl.zeros([CHOSEN_PADDED], tl.int32)
    best = tl.zeros([CHOSEN_PADDED], tl.float32)
    for place in tl.static_range(CHOSEN):
        expert = tl.argmax(left, axis=0)
        chosen = tl.where(places == place, expert, chosen)
        best = tl.where(places == place, tl.max(left, axis=0), best)
        left = tl.where(experts == expert, -1.0, left)
    if RENORMALIZE:
        best = best / tl.sum(best, axis=0)
    tl.store(ids + token * CHOSEN + places, chosen, mask=places < CHOSEN)
    tl.store(weights + token * CHOSEN + places, best, mask=places < CHOSEN)
