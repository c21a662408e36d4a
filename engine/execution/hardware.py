"""What one device can do, as far as the configuration depends on it. Asked on the machine where ranks will run."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import torch


class Hardware(msgspec.Struct, frozen=True):
    num_gpus: int  # 0: nothing else is known, but for the last field
    name: str = ""
    capability: tuple[int, int] = (0, 0)
    memory_bytes: int = 0  # of one GPU
    unusable: str = ""  # why a GPU that is here cannot be used, and what to do; empty where none is here


def of_this_machine() -> Hardware:
    if not torch.cuda.is_available():
        return Hardware(0, unusable=why_unusable(Path("/")))
    properties = torch.cuda.get_device_properties(0)
    return Hardware(torch.cuda.device_count(), properties.name, (properties.major, properties.minor),
                    properties.total_memory)


def why_unusable(root: Path) -> str:
    """Where torch can use no GPU: why not, if the machine has one that nobody hid on purpose."""
    devices = sorted(root.glob("dev/nvidia[0-9]*"))
    if not devices and not (root / "proc/driver/nvidia/version").exists():
        return ""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a CUDA build of it"
    if not devices:
        return ("NVIDIA's driver is loaded, and this process sees no GPU of it; start a container with its GPUs "
                "(--gpus all), elsewhere see that /dev/nvidia0 exists (nvidia-smi makes it)")
    closed = [device for device in devices if not os.access(device, os.R_OK | os.W_OK)]
    if closed:
        return f"this user may not open /{closed[0].relative_to(root)}; see who may (ls -l), and join that group"
    try:
        torch.cuda.init()
    except Exception as error:  # torch says in it whether the driver is too old
        return f"{(str(error).splitlines() or [type(error).__name__])[0]} (torch {torch.__version__})"
    return f"torch {torch.__version__} sees none; nvidia-smi may tell why"
