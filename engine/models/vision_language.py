"""A decoder that takes images: a vision tower beside it, whose features stand where the prompt has placeholders.

A family derives from this and from its text model's class, and says what its tower is. Refuses to know which images a
step has and where their features are kept (`quire.engine.execution.feature_rows`).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from quire.engine.attention.inputs import AttentionInputs
from quire.engine.layers.decoder_layer import Carried, DecoderLayer, KVCache
from quire.engine.layers.mrope import MRope
from quire.engine.layers.vision.tower import Tower
from quire.engine.model_config import ModelConfig
from quire.engine.models.decoder import held
from quire.engine.models.llama import Llama
from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View

# Where checkpoints keep the text's part and the tower; transformers has moved both.
_BODIES = ("model.language_model",)
_TOWERS = ("visual", "model.visual")


class VisionLanguage(Llama):
    tower_class: type[Tower]

    def __init__(self, config: ModelConfig, max_model_len: int, view: View, parallel: Parallel) -> None:
        assert config.vision is not None
        self.vision = config.vision
        super().__init__(config, max_model_len, view, parallel)
        levels = len(self.vision.deepstack_layers)
        mine = self.stage.share(config.num_layers)
        self.has_tower = self.stage.is_first or any(i < levels for i in mine)
        tower = self.tower_class(self.vision, held(self._tower_view(view), self.has_tower))
        self.tower = tower if self.has_tower else None

    def prepare(self, view: View) -> None:
        super().prepare(view)
        if self.vision.mrope_section:
            self.mrope = MRope(self.rotary.table, self.vision.mrope_section, interleaved=self.vision.mrope_interleaved)
            self.rotary = self.local_rotary = replace(self.rotary, moved=True)

    def make_layer(self, i: int, view: View) -> DecoderLayer:
        layer = super().make_layer(i, view)
        return DeepStackLayer(layer, i) if i < len(self.vision.deepstack_layers) else layer

    def body(self, view: View) -> View:
        for name in _BODIES:
            if view.has(f"{name}.{self.names.embedding}.weight"):
                return view.sub(name)
        return super().body(view)

    def _tower_view(self, view: View) -> View:
        names = [name for name in _TOWERS if view.has(f"{name}.patch_embed.proj.weight")]
        return view.sub(names[0] if names else _TOWERS[0])


class DeepStackLayer:
    """A layer, and what the tower's layer of that level adds behind it.

    It is added to the residual. The next norm adds the layer's own update to that, so the sum is the same.
    """

    def __init__(self, layer: DecoderLayer, level: int) -> None:
        self._layer = layer
        self._level = level
        self.whole_updates = layer.whole_updates

    def __call__(self, update: torch.Tensor | None, residual: torch.Tensor, inputs: AttentionInputs, kv_cache: KVCache
                 ) -> Carried:
        update, residual = self._layer(update, residual, inputs, kv_cache)
        if inputs.media is not None:
            inputs.media.add(residual, self._level)
        return update, residual
