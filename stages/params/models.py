"""Parameters of the base model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.params.types import Precision, Table


class TowerParams(Table):
    width: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    mlp_width: int = Field(gt=0)


class TextTowerParams(TowerParams):
    #: Base of the rotary position frequencies. Use a small one for short texts, where few
    #: frequencies distinguish neighbours.
    rope_theta: float = Field(gt=1)
    kv_heads: int = Field(gt=0)


class VisionTowerParams(TowerParams):
    patch_px: int = Field(gt=0)
    merge: int = Field(gt=0)


#: Head sizes that vLLM's attention kernels support, on CPU and on GPU (vLLM 0.22 to 0.32).
SERVED_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)
Family = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


class TinyModelParams(Table):
    """A model of the real architecture built from a configuration, with random weights and a
    tokenizer trained here."""

    kind: Literal["tiny"]
    family: Family
    #: Precision of the saved base model, and of every policy during evaluation.
    precision: Precision
    vocabulary: int = Field(gt=256)
    text: TextTowerParams
    vision: VisionTowerParams

    @model_validator(mode="after")
    def _divides(self) -> TinyModelParams:
        for name, tower in (("text", self.text), ("vision", self.vision)):
            if tower.width % tower.heads:
                raise ValueError(
                    f"{name}.heads {tower.heads} does not divide {name}.width {tower.width}: choose a divisor"
                )
        if self.text.heads % self.text.kv_heads:
            raise ValueError(
                f"text.kv_heads {self.text.kv_heads} does not divide text.heads {self.text.heads}: choose a divisor"
            )
        if (size := self.text.width // self.text.heads) not in SERVED_HEAD_SIZES:
            raise ValueError(
                f"text.heads {self.text.heads} of text.width {self.text.width} are heads of {size}, which no attention"
                " kernel of vLLM takes: choose text.width and text.heads so that a head has one of"
                f" {', '.join(map(str, SERVED_HEAD_SIZES))}"
            )
        return self


class PretrainedModelParams(Table):
    """A model from the hub or from a folder, at a pinned revision."""

    kind: Literal["pretrained"]
    name: str = Field(min_length=1)
    revision: str = Field(min_length=1)
    precision: Precision
    #: Largest number of pixels of one frame after resizing.
    max_pixels_per_frame: int = Field(gt=0)


ModelParams = Annotated[TinyModelParams | PretrainedModelParams, Field(discriminator="kind")]
