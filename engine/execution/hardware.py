"""What one device can do, as far as the configuration depends on it. Asked on the machine where ranks will run."""

from __future__ import annotations

import msgspec
import torch


class Hardware(msgspec.Struct, frozen=True):
    num_gpus: int  # 0: nothing else is known
    name: str = ""
    capability: tuple[int, int] = (0, 0)
    memory_bytes: int = 0  # of one GPU


def of_this_machine() -> Hardware:
    if not torch.cuda.is_available():
        return Hardware(0)
    properties = torch.cuda.get_device_properties(0)
    return Hardware(torch.cuda.device_count(), properties.name, (properties.major, properties.minor),
                    properties.total_memory)
