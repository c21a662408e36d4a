"""The two ends of a model that are as long as its vocabulary, split over ranks by token id."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from quire.engine.layers.load import load_product, load_weight
from quire.engine.layers.product import COPYING, Product
from quire.engine.parallel import Parallel
from quire.engine.quantization.cpu_packed_product import CpuPackedProduct, is_there
from quire.engine.weights.checkpoint import RowReader, View
from quire.engine.weights.scheme import Part


class VocabEmbedding:
    def __init__(self, view: View, vocab_size: int, hidden_size: int, parallel: Parallel) -> None:
        self.ids = parallel.share_uneven(vocab_size)
        self.weight = load_weight(view, [Part("", vocab_size, self.ids)], hidden_size)
        self._parallel = parallel
        self._read_rows: RowReader | None = None

    def share(self, view: View, head: VocabHead) -> None:
        """Let go of the table where its rows can be made of what the tied head has, or of the file's form of it."""
        if self._parallel.size == 1 and self.weight.dtype == torch.float32:
            self._read_rows = head.rows_on_demand(view)
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
    """Hidden states to logits. `rows`: the product with this rank's rows; a tied model's has its embedding's."""

    def __init__(self, rows: Product, vocab_size: int, parallel: Parallel) -> None:
        self._product = rows
        self._vocab_size = vocab_size
        self._parallel = parallel

    @classmethod
    def load(cls, view: View, vocab_size: int, hidden_size: int, parallel: Parallel, *, bias: bool = False
             ) -> VocabHead:
        rows = parallel.share_uneven(vocab_size)
        biases = view.take("bias", (vocab_size,), rows=rows) if bias else None
        mine = load_product(view, [Part("", vocab_size, rows)], hidden_size, biases, is_layer=has_packed_rows(view))
        return cls(mine, vocab_size, parallel)

    def rows_on_demand(self, view: View) -> RowReader | None:
        """A way to read rows of its weights, `view`'s, that takes less memory than they do as floats."""
        if isinstance(self._product, CpuPackedProduct):
            return self._product.rows
        return view.rows_on_demand("weight") if isinstance(self._product, COPYING) else None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, hidden] -> [n, vocab]."""
        return self._parallel.all_gather_last(self._product(hidden), self._vocab_size)


def has_packed_rows(view: View) -> bool:
    """Whether a head is multiplied with as the file packs it: of a GGUF file on a CPU that can. With many rows a GPU
    would make floats of a whole vocabulary in every step."""
    return (view.stays_packed and view.device.type == "cpu" and bool(view.block_type("weight"))
            and view.scheme(is_layer=True) is not None and is_there())
