"""The two ends of a model that are as long as its vocabulary, split over ranks by token id."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from quire.engine.layers.product import PackedProduct, product
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import RowReader, View


class VocabEmbedding:
    def __init__(self, view: View, vocab_size: int, hidden_size: int, parallel: Parallel) -> None:
        self.ids = parallel.share_uneven(vocab_size)
        self.weight = view.take("weight", (vocab_size, hidden_size), rows=self.ids)
        self._parallel = parallel
        self._read_rows: RowReader | None = None

    def keep_as_stored(self, view: View) -> None:
        """Keep the table as the file stores it, and make floats of single rows: the head has a copy of its own."""
        if self._parallel.size == 1 and self.weight.dtype == torch.float32:
            self._read_rows = view.rows_on_demand("weight")
            if self._read_rows is not None:
                self.weight = self.weight.new_empty(0)

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[tokens] -> [tokens, hidden]."""
        if self._read_rows is not None:
            return self._read_rows(token_ids)
        if self._parallel.size == 1:
            return F.embedding(token_ids, self.weight)
        elsewhere = (token_ids < self.ids.start) | (token_ids >= self.ids.stop)
        rows = F.embedding((token_ids - self.ids.start).masked_fill_(elsewhere, 0), self.weight)
        return self._parallel.all_reduce(rows.masked_fill_(elsewhere.unsqueeze(1), 0))


class VocabHead:
    """Hidden states to logits. `weight` is this rank's rows; a tied model gives its embedding's."""

    def __init__(self, weight: torch.Tensor, vocab_size: int, parallel: Parallel,
                 bias: torch.Tensor | None = None) -> None:
        self._product = product(weight, bias)
        self._vocab_size = vocab_size
        self.has_copied = isinstance(self._product, PackedProduct)
        self._parallel = parallel

    @classmethod
    def load(cls, view: View, vocab_size: int, hidden_size: int, parallel: Parallel, *, bias: bool = False
             ) -> VocabHead:
        rows = parallel.share_uneven(vocab_size)
        biases = view.take("bias", (vocab_size,), rows=rows) if bias else None
        return cls(view.take("weight", (vocab_size, hidden_size), rows=rows), vocab_size, parallel, biases)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, hidden] -> [n, vocab]."""
        return self._parallel.all_gather_last(self._product(hidden), self._vocab_size)
