from __future__ import annotations

import pytest

from quire.kernels.bench import check_gpu


@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_compiled_kernels_agree_with_float64():
    assert check_gpu.main(["--quick"]) == 0
