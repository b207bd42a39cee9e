"""Preprocessing: how an image file becomes an input of the network."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

__all__ = ["USUAL_NORMALISATIONS", "Augmentation", "Preprocessing"]

Augmentation = Literal["crop", "flip", "resized_crop", "colour", "mixup", "cutmix"]
"""How training images are varied; see `pipeline.data.augment`."""

USUAL_NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "-1 to 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Means and standard deviations, which are tried in this order when none are declared."""


class Preprocessing(BaseModel):
    """How a network expects its images; declared as PREPROCESSING beside its factory, or in preprocessing.yaml beside the images.

    Preprocessing(size=32, mean=(0.5,), std=(0.5,))     # grey images of exactly 32x32
    Preprocessing(size=224, resize=256, mean=..., ...)  # any size: shorter side to 256, middle 224x224
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    size: int | None = Field(None, strict=True, ge=1, le=4096, examples=[224])
    """Side of the square input in pixels; None: the side of the images, which must then all be equal."""
    width: int | None = Field(None, strict=True, ge=1, le=4096, examples=[192])
    """Width of an input that is not square; `size` is then its height."""
    resize: int | None = Field(None, strict=True, ge=1, le=8192, examples=[256])
    """Shorter side before the middle is cropped, in pixels; None: the images must already have the right size. With a `width`,
    the image is resized to cover `resize` pixels of height and as many of width in proportion."""
    mean: tuple[float, ...] | None = Field(None, examples=["[0.485, 0.456, 0.406]"])
    std: tuple[float, ...] | None = Field(None, examples=["[0.229, 0.224, 0.225]"])
    """Per channel, for values from 0 to 1. One channel is grey, three are red, green and blue."""
    grey: Literal["refuse", "convert"] = Field("refuse", examples=["convert"])
    """What to do with an image whose number of channels differs from `mean`."""
    exif_orientation: Literal["ignore", "apply"] | None = Field(None, examples=["apply"])
    """Whether images are rotated by their EXIF data; None ignores the data too, and reports it where there are such images."""
    augment: tuple[Augmentation, ...] = Field((), examples=["[crop, flip]"])
    """During training: shifts by up to an eighth of the side (crop), mirroring left to right (flip), a part of the original image
    of 8 to 100 % of its area (resized_crop), brightness, contrast and saturation (colour), and mixtures of images and their
    labels (mixup, cutmix)."""

    @field_validator("width")
    @classmethod
    def _beside_a_height(cls, width: int | None, info: ValidationInfo) -> int | None:
        if width is not None and info.data.get("size") is None:
            raise ValueError("needs size, which is the height")
        return width

    @field_validator("mean", "std")
    @classmethod
    def _one_or_three(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if values is not None and len(values) not in (1, 3):
            raise ValueError(f"expected 1 or 3 numbers (got {len(values)})")
        return values

    @field_validator("std")
    @classmethod
    def _positive(cls, values: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        if values is not None and min(values) <= 0:
            raise ValueError("must be above zero")
        if values is not None and "mean" in info.data and len(values) != len(info.data["mean"] or ()):
            raise ValueError(f"expected as many numbers as mean, which has {len(info.data['mean'] or ())}")
        return values

    @field_validator("augment")
    @classmethod
    def _one_crop(cls, augment: tuple[Augmentation, ...]) -> tuple[Augmentation, ...]:
        if {"crop", "resized_crop"} <= set(augment):
            raise ValueError("crop and resized_crop exclude each other; keep one")
        return augment

    @field_validator("resize")
    @classmethod
    def _no_smaller_than_size(cls, resize: int | None, info: ValidationInfo) -> int | None:
        size = info.data.get("size")
        if resize is not None and size is not None and resize < size:
            raise ValueError(f"must not be smaller than size, which is {size}")
        return resize

    def facts(self) -> dict[str, Any]:
        """Return the facts that a run is bound to. Runs that are older than a key do not have it."""
        return self.model_dump(mode="json", exclude={name for name in ("exif_orientation", "width") if not getattr(self, name)})

    @property
    def channels(self) -> int | None:
        """1 or 3; None when `mean` is not declared."""
        return len(self.mean) if self.mean else None
