"""Qwen3-VL: Qwen3 with images, whose features of several depths are added behind the first layers (DeepStack)."""

from __future__ import annotations

from quire.engine.layers.vision.blocks import MLP, Block, LayerNorm, Merger
from quire.engine.layers.vision.tower import Tower
from quire.engine.models.qwen3 import Qwen3
from quire.engine.models.vision_language import VisionLanguage
from quire.engine.weights.checkpoint import View

_FC = ("linear_fc1", "linear_fc2")


class Qwen3VLTower(Tower):
    patch_bias = True

    def make_block(self, view: View) -> Block:
        facts = self.facts
        sizes = facts.width, facts.intermediate_size, facts.width
        return self.block(view, LayerNorm, MLP(view.sub("mlp"), _FC, sizes, facts.hidden_act))

    def make_merger(self, view: View) -> Merger:
        return self._merger_of(view, self.facts.width, joins_first=False)

    def make_deep_merger(self, view: View) -> Merger:
        return self._merger_of(view, self.joined_width, joins_first=True)

    def _merger_of(self, view: View, normed_width: int, *, joins_first: bool) -> Merger:
        joined = self.joined_width
        mlp = MLP(view, _FC, (joined, joined, self.facts.out_width), "gelu")
        return Merger(LayerNorm(view.sub("norm"), normed_width), mlp, joined, joins_first=joins_first)


class Qwen3VL(VisionLanguage, Qwen3):
    tower_class = Qwen3VLTower
