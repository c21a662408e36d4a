"""POST /v1/embeddings: what it takes and what it gives."""

from __future__ import annotations

from typing import Annotated

import msgspec

from quire.app.errors import ApiError
from quire.app.schemas import meanings
from quire.app.schemas.described import about, json_of, one_of
from quire.app.schemas.prompts import PROMPTS, prompts_of
from quire.app.schemas.sampling import check_place
from quire.engine.arguments import shown
from quire.engine.pooling_params import PoolingParams

_CHOICES = {"encoding_format": ("float", "base64"), "embed_dtype": ("float32",), "endianness": ("native", "little")}


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    input: Annotated[msgspec.Raw, PROMPTS, meanings.PROMPT]  # see `inputs`
    model: Annotated[str | None, meanings.MODEL] = None
    encoding_format: Annotated[
        str, one_of(*_CHOICES["encoding_format"]), about("Numbers, or float32 in base64.")] = "float"
    dimensions: Annotated[
        int | None, about("Length that vectors are cut to, where the model was trained for that.")] = None
    use_activation: Annotated[
        bool | None, about("Whether vectors are made of length 1; left out, the model's files tell.")] = None
    normalize: Annotated[bool | None, about("Older name of `use_activation`.")] = None
    truncate_prompt_tokens: Annotated[
        int | None, about("Tokens that a longer text is cut to; -1: what the model takes.")] = None
    truncation_side: Annotated[str | None, about("`left` or `right`: where it is cut.")] = None
    add_special_tokens: Annotated[bool, about("Whether the tokenizer puts its own tokens around the text.")] = True
    priority: Annotated[int, meanings.PRIORITY] = 0
    cache_salt: Annotated[
        str, about("Only requests with the same salt share what the prefix cache holds of their texts.")] = ""
    # What vLLM takes beside; of each, the form that base64 has anyway.
    embed_dtype: Annotated[str, one_of(*_CHOICES["embed_dtype"]), about("Type of the numbers in base64.")] = "float32"
    endianness: Annotated[str, one_of(*_CHOICES["endianness"]), about("Order of their bytes.")] = "native"

    def pooling_params(self) -> PoolingParams:
        """Raises ApiError, InvalidRequestError for what can be seen to be wrong without the model."""
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ApiError(400, f"{name} must be {' or '.join(choices)}, got {shown(getattr(self, name))}.", name)
        check_place(self.priority, self.cache_salt)
        return PoolingParams(
            dimensions=self.dimensions, use_activation=self.use_activation, normalize=self.normalize,
            truncate_prompt_tokens=self.truncate_prompt_tokens, truncation_side=self.truncation_side)

    def inputs(self, max_inputs: int, max_model_len: int) -> list[str | list[int]]:
        """One or more. Raises ApiError, InvalidRequestError."""
        found = prompts_of("input", self.input, max_inputs, max_model_len, 0,
                           are_cut=self.truncate_prompt_tokens is not None)
        for i, one in enumerate(found):
            if not one:
                where = f"input[{i}]" if len(found) > 1 else "input"
                raise ApiError(400, f"{where} is empty; an embedding is made of a text, or of token ids.", "input")
        return found


class EmbeddingObject(msgspec.Struct, tag_field="object", tag="embedding"):
    index: int
    embedding: list[float] | str  # of base64: float32 each, the lowest byte first


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(msgspec.Struct, kw_only=True):
    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Annotated[msgspec.Raw, json_of(EmbeddingObject)]]
    usage: EmbeddingUsage
