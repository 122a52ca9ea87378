"""What clients of the API send, besides files."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dreamactor.backbones.load import Variant
from dreamactor.backbones.presets import Preset
from dreamactor.diffusion.job import Fit
from dreamactor.interpolate import Interpolation

ID = "^[0-9a-f]{16}$"
Id = Annotated[str, Field(pattern=ID)]


def _readable(text: str) -> str:
    if any(unicodedata.category(c) == "Cc" and c not in "\t\n\r" for c in text):
        raise ValueError("want no control characters")
    return text


Words = Annotated[str, Field(max_length=1000), AfterValidator(_readable)]


class Part(BaseModel):
    """A reference and a part of a driving clip."""

    model_config = ConfigDict(extra="forbid", strict=True)
    reference: Id = Field(description="Id of an upload of this kind.")
    driving: Id = Field(description="Id of an upload of this kind.")
    start: float = Field(0.0, ge=0, description="Seconds of the clip that are left out before.")
    end: float | None = Field(None, gt=0, description="Where it is cut, seconds; null = its end.")


class Order(Part):
    """What a job does; see the table of options in the README."""

    consent: bool = Field(
        description="true: you have the right to animate this person or work. Kept with the job."
    )
    variant: Variant = "rgb"
    prompt: Words | None = Field(None, description="null = described, empty = none.")
    negative: Words = ""
    preset: Preset | None = Field(
        None, description="Settings of this name, of those in /about; null = the weights' own."
    )
    steps: int | None = Field(
        None, ge=1, description="null = as many as the preset, else the weights, want."
    )
    guidance: float | None = None
    seed: int = Field(0, ge=0, lt=1 << 53)  # what JavaScript can say
    fit: Fit = "letterbox"
    fps: float | None = None
    interpolate: Interpolation = "flow"
    audio: bool = True


class Token(BaseModel):
    """The server's."""

    model_config = ConfigDict(extra="forbid", strict=True)
    token: str = Field(max_length=1000)
