"""LLaVA-1.5: one square view of the picture through a CLIP or SigLIP tower, a Llama-like decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safecode_trt.errors import CheckpointError, PictureError
from safecode_trt.models.layout import MAX_PIXELS, Frame, Layout, Size, View
from safecode_trt.models.pixels import CENTRED_PIXELS, CLIP_PIXELS
from safecode_trt.models.spec import read_preprocessor
from safecode_trt.models.tower import TowerSpec, select_features, side, tower_fields

__all__ = ["LlavaSpec", "load"]

IMAGE = "<image>"

# What transformers' image processors assume where their settings are silent.
RESIZED = {"do_resize": True, "size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224}
CLIP = {**CLIP_PIXELS, **RESIZED}
SIGLIP = {
    **CENTRED_PIXELS,
    **RESIZED,
    "resample": 3,
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
}
# By image_processor_type. Only LlavaImageProcessor pads a single picture.
PROCESSORS = {
    "CLIPImageProcessor": CLIP,
    "LlavaImageProcessor": CLIP,
    "SiglipImageProcessor": SIGLIP,
}


def load(folder: Path, config: Mapping[str, Any]) -> LlavaSpec:
    """Reads config.json and the image processor's settings of a checkpoint or bundle."""
    preprocessor = read_preprocessor(folder)
    name = str(preprocessor.get("image_processor_type", "CLIPImageProcessor")).removesuffix("Fast")
    if name not in PROCESSORS:
        raise CheckpointError(
            f"{folder}: image_processor_type {name} is not supported; supported: {', '.join(PROCESSORS)}"
        )
    settings = PROCESSORS[name] | {key: x for key, x in preprocessor.items() if x is not None}
    text = config.get("text_config") or {}
    size, _, features = select_features(config)
    tied = bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    spec = LlavaSpec(
        **tower_fields(text, settings, model_type="llama", tie_word_embeddings=tied),
        image_token_id=int(config.get("image_token_id", config.get("image_token_index", 32000))),
        image_size=size,
        image_seq_len=features,
        do_pad=name == "LlavaImageProcessor" and bool(settings.get("do_pad")),
        size=_resized(settings["size"]),
        do_center_crop=bool(settings["do_center_crop"]),
    )
    view = spec.view(2 * size, size).size
    crop = _crop(settings.get("crop_size")) if spec.do_center_crop else view[0]
    if view != (size, size) or crop != size or not settings["do_resize"]:
        raise CheckpointError(
            f"{folder}: the image processor does not make pictures of {size} x {size}, as the vision tower "
            "takes them; look at its size, crop_size, do_resize and do_center_crop"
        )
    return spec


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaSpec(TowerSpec):
    """The spec of one LLaVA checkpoint; `size` is the shortest edge, or width and height."""

    do_pad: bool
    size: int | Size
    do_center_crop: bool
    model_type: str = "llava"

    @property
    def image_placeholder(self) -> str:
        return IMAGE

    @property
    def reference_layout(self) -> Layout:
        return self.layout(self.image_size, self.image_size)

    def layout(self, width: int, height: int) -> Layout:
        view = self.view(width, height)
        for wide, high in (view.resizes[0], view.frame.size if view.frame else (1, 1)):
            if wide * high > MAX_PIXELS:
                raise PictureError(
                    f"the picture is {width} x {height} and would become one of {wide} x {high}; at most "
                    f"{MAX_PIXELS} pixels are accepted, cut it"
                )
        return Layout(views=(view,), tokens=self.image_seq_len)

    def view(self, width: int, height: int) -> View:
        """The picture padded to a square, resized, and its middle cut out, as far as these are asked for."""
        frame = None
        if self.do_pad and width != height:
            edge = max(width, height)
            left, top = -((edge - width) // 2), -((edge - height) // 2)
            red, green, blue = (int(mean * 255) for mean in self.image_mean)
            frame = Frame(box=(left, top, left + edge, top + edge), colour=(red, green, blue))
            width = height = edge
        resized = _shortest(width, height, self.size) if isinstance(self.size, int) else self.size
        if not self.do_center_crop:
            return View(frame=frame, resizes=(resized,))
        left, top = ((edge - self.image_size) // 2 for edge in resized)
        box = (left, top, left + self.image_size, top + self.image_size)
        return View(frame=frame, resizes=(resized,), box=box)

    def image_text(self, layout: Layout) -> str:
        return IMAGE * layout.tokens


def _shortest(width: int, height: int, edge: int) -> Size:
    """The size with this shortest edge."""
    if width <= height:
        return edge, int(edge * height / width)
    return int(edge * width / height), edge


def _resized(size: object) -> int | Size:
    if isinstance(size, int):
        return size
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return int(size["width"]), int(size["height"])
    if isinstance(size, Mapping) and "shortest_edge" in size and "longest_edge" not in size:
        return int(size["shortest_edge"])
    raise CheckpointError(
        f"the image processor's size {size!r} is neither a shortest_edge nor height and width"
    )


def _crop(size: object) -> int:
    sides = [size.get("height"), size.get("width")] if isinstance(size, Mapping) else size
    return side(sides, "the image processor's crop_size")
