"""Programmatic dependent launch: a kernel may be set up before the one in front of it has ended.

Every kernel launched with `launch.early(device)` calls `begin` first: it then reads nothing of its predecessor's, and
writes nothing, before all of the predecessor's writes are there; so a chain of such kernels keeps its order. CUDA
programming guide, "Programmatic Dependent Launch"; PTX `griddepcontrol`.
"""

import triton
import triton.language as tl

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

    AVAILABLE = True
except ImportError:  # before Triton 3.3
    AVAILABLE = False

    @triton.jit
    def gdc_wait():
        pass

    @triton.jit
    def gdc_launch_dependents():
        pass


@triton.jit
def begin(EARLY: tl.constexpr):
    """Let the next kernel's programs start where there is room, and wait for the kernel before."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def let_next_start(EARLY: tl.constexpr):
    if EARLY:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(EARLY: tl.constexpr):
    if EARLY:
        gdc_wait()
