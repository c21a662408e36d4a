"""Slopes against the paper's numbers; against transformers' where BLOOM, Falcon and MPT are (models/families.py)."""

from __future__ import annotations

import torch

from quire.engine.layers import alibi


def test_slopes_are_the_papers() -> None:
    torch.testing.assert_close(alibi.slopes(8), 2.0 ** -torch.arange(1.0, 9))
    torch.testing.assert_close(alibi.slopes(12)[8:], 2.0 ** -torch.tensor([0.5, 1.5, 2.5, 3.5]))


def test_mpt_may_say_how_steep_the_steepest_is() -> None:
    """transformers' own MPT leaves it at 8 whatever the file says, so that no case of its can show this."""
    torch.testing.assert_close(alibi.mpt_slopes(8, 16.0), alibi.mpt_slopes(8, 8.0) ** 2)
    torch.testing.assert_close(alibi.mpt_slopes(5, 16.0), 2.0 ** -torch.tensor([4.0, 8, 12, 16, 2]))
