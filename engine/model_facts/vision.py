"""What a model that takes images says of them: which tokens stand for them, how they are cut, what its tower is.

A family's function makes it of the parsed config.json (`Family.vision`). Read by the front end, the core and the tower;
imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

Grid = tuple[int, int, int]  # (t, h, w): frames, rows and columns, in patches

# Activations that a tower may have: config.json's hidden_act -> the kernel's kind
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionFacts:
    model_type: str  # "qwen2_vl"
    # Tokens.
    image_token_id: int
    video_token_id: int
    vision_start_id: int
    vision_end_id: int
    # How an image is cut. A patch is patch_size * patch_size pixels of temporal_patch_size frames, and merge_size *
    # merge_size patches become one token.
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    in_channels: int
    max_image_tokens: int  # of an image that the processor's own limit of pixels lets through
    # The tower.
    depth: int
    width: int
    num_heads: int
    intermediate_size: int
    hidden_act: str  # one of ACTIVATIONS
    out_width: int  # of a feature: the decoder's hidden size
    full_attention_layers: tuple[int, ...] = ()  # where all others have windows
    window_pixels: int = 0  # a window's side; 0: there are none
    num_positions: int = 0  # rows of the table of learned positions, a square; 0: there is none
    deepstack_layers: tuple[int, ...] = ()  # whose outputs are features too, of the decoder's layers 0, 1, ...
    # M-RoPE: how many of a head's rotated pairs turn by frame, row and column; () where positions are plain.
    mrope_section: tuple[int, ...] = ()
    mrope_interleaved: bool = False  # in turns, not one stretch after the other

    @property
    def patch_values(self) -> int:
        """Numbers of a patch, as `Media.path` holds them: channel, frame, row, column."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def token_pixels(self) -> int:
        return (self.patch_size * self.merge_size)**2

    @property
    def feature_width(self) -> int:
        """Numbers of a token's features: what stands for its embedding, then what is added behind the first layers."""
        return self.out_width * (1 + len(self.deepstack_layers))

    def num_tokens(self, grid: Grid) -> int:
        t, h, w = grid
        return t * h * w // self.merge_size**2
