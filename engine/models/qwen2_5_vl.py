"""Qwen2.5-VL: Qwen2 with images, whose tower looks through windows in most layers."""

from __future__ import annotations

from quire.engine.layers.vision.blocks import MLP, Block, GatedMLP, Merger, RMSNorm
from quire.engine.layers.vision.tower import Tower
from quire.engine.models.qwen2 import Qwen2
from quire.engine.models.vision_language import VisionLanguage
from quire.engine.weights.checkpoint import View


class Qwen25VLTower(Tower):
    def make_block(self, view: View) -> Block:
        facts = self.facts
        mlp = GatedMLP(view.sub("mlp"), facts.width, facts.intermediate_size, facts.hidden_act)
        return self.block(view, RMSNorm, mlp)

    def make_merger(self, view: View) -> Merger:
        joined = self.joined_width
        mlp = MLP(view.sub("mlp"), ("0", "2"), (joined, joined, self.facts.out_width), "gelu")
        return Merger(RMSNorm(view.sub("ln_q"), self.facts.width), mlp, joined)


class Qwen25VL(VisionLanguage, Qwen2):
    tower_class = Qwen25VLTower
