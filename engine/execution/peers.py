"""Memory of the GPUs of one host that all ranks of a tensor-parallel group see, for `quire.kernels.all_reduce`.

CUDA IPC handles travel through the ranks' store; NVLink multicast is not used. Called once by `collectives.join`; where
one of the ranks cannot see another's memory, none has peers.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog
import torch
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from quire.kernels import launch
from quire.kernels.all_reduce import FLAG_SLOTS, Peers, all_reduce, rows_of_stretch, words_of

log = structlog.get_logger("engine")

# Ranks, at most: bytes of a rank's rows that go by packets, and in all; with more, flags and NCCL are faster. From
# `python -m quire.loadtest.all_reduce` on H200, which looks beyond them; of 8 ranks guessed.
LIMITS = {2: (512 << 10, 1 << 40), 4: (320 << 10, 320 << 10), 8: (80 << 10, 80 << 10)}
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # two containers of a host have one


def connect(store: Store, name: str, rank: int, size: int, hidden_size: int, dtype: torch.dtype,
            device: torch.device) -> Peers | None:
    """All ranks of the group `name` call it; None where they are not on one host or cannot reach each other."""
    limits = next((limits for ranks, limits in LIMITS.items() if size <= ranks), None)
    if limits is None:
        return None
    meeting = PrefixStore(f"peers/{name}", store)
    packet_rows, max_rows = (max(1, limit // (hidden_size * dtype.itemsize)) for limit in limits)
    programs = min(launch.SUM_PROGRAMS, max_rows)
    num_rows = FLAG_SLOTS.value * size * programs * rows_of_stretch(hidden_size)
    rows = torch.zeros(num_rows * hidden_size * dtype.itemsize, dtype=torch.uint8, device=device)
    flags = torch.zeros(4 * size * programs, dtype=torch.uint8, device=device)
    num_packets = 2 * size * packet_rows * words_of(hidden_size, dtype)[0]
    packets = torch.zeros(8 * num_packets, dtype=torch.uint8, device=device)
    torch.cuda.synchronize(device)
    shared = {"rows": rows, "flags": flags, "packets": packets}
    for what, mine in shared.items():  # all, before one of others' cannot be opened: nobody is to wait for an offer
        _offer(meeting, what, rank, mine)
    try:
        rows_of, flags_of, packets_of = (_open(meeting, what, rank, size, mine) for what, mine in shared.items())
        problem = ""
    except (RuntimeError, _OtherHostError) as error:
        problem = str(error) or "unknown"
    if found := _problems(meeting, "mapped", rank, size, problem):
        log.info("sums go through NCCL alone", reason=found)
        return None
    stretches, calls = (torch.zeros(count, dtype=torch.int32, device=device) for count in (programs, packet_rows))
    peers = Peers(rank, size, _addresses(rows_of), _addresses(flags_of), _addresses(packets_of), stretches, calls,
                  max_rows, hidden_size, dtype)
    _kept.append((rows_of, flags_of, packets_of))
    several = min(max_rows, 2 * programs * rows_of_stretch(hidden_size))  # stretches
    wrong = "" if all(_sums_right(peers, num_rows, device) for num_rows in (1, several)) else "a test sum was wrong"
    if found := _problems(meeting, "tested", rank, size, wrong):
        log.warning("sums go through NCCL alone", reason=found)
        return None
    return peers


_kept: list[object] = []  # mapped for as long as this process lives: graphs hold the addresses


class _OtherHostError(Exception):
    pass


def _offer(meeting: Store, what: str, rank: int, mine: torch.Tensor) -> None:
    """Where `mine` is and its handle; why there is none, alone, if it cannot be shared."""
    try:
        offer = (_BOOT_ID.read_text(), *mine.untyped_storage()._share_cuda_()[1:])
    except RuntimeError as error:
        offer = (str(error),)
    meeting.set(f"{what}/{rank}", msgspec.msgpack.encode(offer))  # type: ignore[arg-type]  # bytes are taken, and given


def _open(meeting: Store, what: str, rank: int, size: int, mine: torch.Tensor) -> list[torch.Tensor]:
    """Everybody's tensor like `mine`, in this process."""
    host = _BOOT_ID.read_text()
    found = []
    for peer in range(size):
        where, *handle = msgspec.msgpack.decode(meeting.get(f"{what}/{peer}"))
        if not handle:
            raise RuntimeError(where)
        if where != host:
            raise _OtherHostError("the ranks of a stage are on several hosts")
        if peer == rank:
            found.append(mine)
            continue
        # Mapped for our device: that it is another device's memory is the driver's business.
        storage = torch.UntypedStorage._new_shared_cuda(mine.get_device(), *handle)
        found.append(torch.empty(0, dtype=torch.uint8, device=mine.device).set_(storage))
    return found


def _sums_right(peers: Peers, num_rows: int, device: torch.device) -> bool:
    x = torch.full((num_rows, peers.max_columns), peers.rank + 1, dtype=peers.dtype, device=device)
    return bool((all_reduce(x, peers) == peers.size * (peers.size + 1) // 2).all())


def _addresses(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64, device=tensors[0].device)


def _problems(meeting: Store, question: str, rank: int, size: int, problem: str) -> str:
    """The first that any rank has; all get the same answer."""
    meeting.set(f"{question}/{rank}", problem or "-")
    answers = [meeting.get(f"{question}/{peer}").decode() for peer in range(size)]
    return next((answer for answer in answers if answer != "-"), "")
