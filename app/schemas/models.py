"""GET /v1/models: the model cards, with every field that vLLM's have."""

from __future__ import annotations

import hashlib

import msgspec


class ModelPermission(msgspec.Struct, kw_only=True):
    id: str
    object: str = "model_permission"
    created: int
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: None = None
    is_blocking: bool = False


class ModelCard(msgspec.Struct, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "quire"
    root: str
    parent: None = None
    max_model_len: int
    permission: list[ModelPermission]
    input_modalities: list[str] | msgspec.UnsetType = msgspec.UNSET  # of a model that takes more than text


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"


def model_card(name: str, root: str, created: int, max_model_len: int, *, takes_images: bool = False) -> ModelCard:
    # Every worker must give the same card, so the permission's id is derived, not drawn.
    digest = hashlib.sha256(f"{name}\0{created}".encode()).hexdigest()[:32]
    return ModelCard(id=name, created=created, root=root, max_model_len=max_model_len,
                     permission=[ModelPermission(id=f"modelperm-{digest}", created=created)],
                     input_modalities=["text", "image"] if takes_images else msgspec.UNSET)
