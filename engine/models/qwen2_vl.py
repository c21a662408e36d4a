"""Qwen2-VL: Qwen2 with images, whose tower sees each whole."""

from __future__ import annotations

from quire.engine.layers.vision.blocks import MLP, Block, LayerNorm, Merger
from quire.engine.layers.vision.tower import Tower
from quire.engine.models.qwen2 import Qwen2
from quire.engine.models.vision_language import VisionLanguage
from quire.engine.weights.checkpoint import View


class Qwen2VLTower(Tower):
    def make_block(self, view: View) -> Block:
        facts = self.facts
        sizes = facts.width, facts.intermediate_size, facts.width
        return self.block(view, LayerNorm, MLP(view.sub("mlp"), ("fc1", "fc2"), sizes, facts.hidden_act))

    def make_merger(self, view: View) -> Merger:
        joined = self.joined_width
        mlp = MLP(view.sub("mlp"), ("0", "2"), (joined, joined, self.facts.out_width), "gelu")
        return Merger(LayerNorm(view.sub("ln_q"), self.facts.width), mlp, joined)


class Qwen2VL(VisionLanguage, Qwen2):
    tower_class = Qwen2VLTower
