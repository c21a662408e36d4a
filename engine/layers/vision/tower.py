"""The vision tower: patches of several images in, features of their tokens out, all images in one batch.

Its form is that of Qwen's three: patches become vectors, blocks attend within frames or windows, a merger makes a token
of neighbours. A family's tower says how its blocks and mergers are made. Called by `engine/models/vision_language.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from quire.engine.layers.vision import geometry
from quire.engine.layers.vision.blocks import Apply, Attention, Block, LayerNorm, Merger, RMSNorm
from quire.engine.layers.vision.host import sent
from quire.engine.layers.vision.position_table import PositionTable
from quire.engine.layers.vision.rotary import PatchRotary
from quire.engine.layers.vision.segments import Segments
from quire.engine.model_facts.vision import Grid, VisionFacts
from quire.engine.weights.checkpoint import View


class Tower:
    patch_bias = False

    def __init__(self, facts: VisionFacts, view: View) -> None:
        self.facts = facts
        self.device, self.dtype = view.device, view.dtype
        patch = facts.patch_size
        kernel = (facts.width, facts.in_channels, facts.temporal_patch_size, patch, patch)
        embedding = view.sub("patch_embed.proj")
        # A convolution whose kernel is as large as its step is a product with each patch.
        self._patches = embedding.take("weight", kernel).view(facts.width, facts.patch_values)
        self._patch_bias = embedding.take("bias", (facts.width,)) if self.patch_bias else None
        self._table = (PositionTable(view.sub("pos_embed"), facts.num_positions, facts.width, facts.merge_size)
                       if facts.num_positions else None)
        self._rotary = PatchRotary(facts.width // facts.num_heads, view.device)
        self._blocks = [self.make_block(view.sub(f"blocks.{i}")) for i in range(facts.depth)]
        self._merger = self.make_merger(view.sub("merger"))
        self._deep_mergers = {layer: self.make_deep_merger(view.sub(f"deepstack_merger_list.{level}"))
                              for level, layer in enumerate(facts.deepstack_layers)}

    # What a family says

    def make_block(self, view: View) -> Block:
        raise NotImplementedError

    def make_merger(self, view: View) -> Merger:
        raise NotImplementedError

    def make_deep_merger(self, view: View) -> Merger:
        """Of a layer whose output is a feature too."""
        raise NotImplementedError

    # How it is carried out

    def block(self, view: View, norm: type[LayerNorm] | type[RMSNorm], mlp: Apply) -> Block:
        width = self.facts.width
        return Block(norm(view.sub("norm1"), width), Attention(view.sub("attn"), width, self.facts.num_heads),
                     norm(view.sub("norm2"), width), mlp)

    @property
    def joined_width(self) -> int:
        """Of a token's patches together."""
        return self.facts.width * self.facts.merge_size**2

    def __call__(self, pixels: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """[patches, patch values], images one after the other -> [tokens, feature width]."""
        x = F.linear(pixels.to(self.dtype), self._patches, self._patch_bias)
        if self._table is not None:
            x += self._table(grids).to(self.dtype)
        places = geometry.patch_places(grids, self.facts.merge_size)
        whole = Segments(geometry.frame_lengths(grids), self.device)
        if not self.facts.window_pixels:
            return self._features(x, sent(places, self.device), whole, whole)
        order, counts = geometry.window_order(grids, self.facts.merge_size, self._window_side)
        joined = self.facts.merge_size**2
        by_window = (order[:, None] * joined + np.arange(joined)).ravel()  # the same of patches
        windows = Segments([count * joined for count in counts], self.device)
        features = self._features(x[sent(by_window, self.device)], sent(places[:, by_window], self.device), whole,
                                  windows)
        return features[sent(np.argsort(order), self.device)]

    @property
    def _window_side(self) -> int:
        """In tokens."""
        return self.facts.window_pixels // self.facts.merge_size // self.facts.patch_size

    def _features(self, x: torch.Tensor, places: torch.Tensor, whole: Segments, windows: Segments) -> torch.Tensor:
        angles = self._rotary.angles(places)
        deep = []
        for layer, block in enumerate(self._blocks):
            x = block(x, angles, whole if layer in self.facts.full_attention_layers else windows)
            if layer in self._deep_mergers:
                deep.append(self._deep_mergers[layer](x))
        return torch.cat((self._merger(x), *deep), -1) if deep else self._merger(x)
