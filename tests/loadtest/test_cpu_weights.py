from __future__ import annotations

import pytest
import torch

from quire.loadtest.__main__ import main
from quire.loadtest.cpu_weights import alike_up_to


def test_replies_are_alike_up_to_the_first_token_that_differs() -> None:
    assert alike_up_to([[1, 2, 3], [1, 2], [4], []], [[1, 2, 4], [1, 2], [5], []]) == [2, 2, 0, 0]


@pytest.mark.slow
@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="this torch has no FBGEMM")
def test_each_form_is_measured_beside_float32(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cpu-weights", "--repeats", "1", "--threads", "1", "--chats", "1"]) == 0
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["weights", "---", "float32", "float16", "int8"]
    assert rows[2][4] == "1, 1, 1 of 1"
    assert int(rows[4][3]) < int(rows[3][3]) < int(rows[2][3]), "resident memory"
