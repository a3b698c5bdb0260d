"""What the sections of a recipe are made of: strict models, and values of several forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag


class StrictModel(BaseModel):
    """A section of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def tag_form(value: Any) -> str:
    """Return the tag of the union member that a value has the form of; messages leave the tag out."""
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, list | tuple):
        return "<sources>" if value and all(isinstance(each, dict | BaseModel) for each in value) else "<list>"
    if value is None:
        return "<nothing>"
    return "<keys>" if isinstance(value, dict | BaseModel) else "<scalar>"


def one_of(rule: str, tag: Callable[[Any], str] = tag_form) -> Discriminator:
    """Choose the member of a union by the form of the value, so that an error is about that member alone."""
    return Discriminator(tag, custom_error_type="either", custom_error_message=f"Input should be {rule}")


Count = Annotated[int, Field(ge=1)]
Band = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[Count, Tag("<scalar>")], one_of("the name or the number of a band")
]

Names = Annotated[tuple[str, ...], Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
