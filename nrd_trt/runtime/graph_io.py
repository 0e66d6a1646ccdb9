"""What a graph reads and what its outputs mean: images to feeds, outputs to masks. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from nrd_trt.data.preprocessing import Fitting, normalise, planar
from nrd_trt.errors import ConfigError
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.runtime.base import DeviceTensor
from nrd_trt.specs import TensorSpec, format_shape, spec_differences

if TYPE_CHECKING:
    from nrd_trt.engine.loading import LoadedEngine


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """What was drawn of an image.

    Attributes:
        mask: Class indices ``(H, W) uint8``.
        confidence: ``(H, W) uint8``, 255 times the softmax of the class drawn; None where the graph does not give it.
    """

    mask: np.ndarray
    confidence: np.ndarray | None = None

    def restored(self, fitting: Fitting) -> Segmentation:
        """Return it at the image's size; of both the nearest pixels, so that a confidence is that of its class."""
        confidence = None if self.confidence is None else fitting.restore(self.confidence)
        return Segmentation(mask=fitting.restore(self.mask), confidence=confidence)


def check_confidence(graph: GraphFacts, asked: str) -> None:
    """Raise `ConfigError` unless a graph gives the confidence; the message begins with what `asked` for it."""
    if "confidence" not in graph.outputs:
        got = " and ".join(graph.outputs)
        raise ConfigError(
            f"{asked}: expected an engine with the output confidence, got one with {got}; build one: "
            "nrd_trt.build('CHECKPOINT', 'NAME.nrd', outputs=('mask', 'confidence'))"
        )


def image_feed(image: np.ndarray, graph: GraphFacts) -> dict[str, np.ndarray]:
    """Return the feed of a graph for one image ``(h, w, 3) uint8 RGB``, repeated where its smallest batch is larger."""
    return batch_feed(np.repeat(image[None], graph.shape.batch.min, axis=0), graph)


def batch_feed(images: np.ndarray, graph: GraphFacts) -> dict[str, np.ndarray]:
    """Return the feed of a graph for images ``(B, h, w, 3) uint8 RGB`` of a size that it accepts, in its input form."""
    if graph.input_form == "uint8":
        return {"image": images}
    return {"image": planar(images) if graph.input_form == "rgb_float" else normalise(images, graph.info)}


def device_feed(image: DeviceTensor, graph: GraphFacts) -> dict[str, DeviceTensor] | None:
    """Return the feed of a graph for an image ``(h, w, 3) uint8 RGB`` on the device; None where it reads others."""
    if graph.input_form != "uint8" or graph.shape.batch.min > 1:
        return None
    return {"image": replace(image, shape=(1, *image.shape))}


def graph_specs(graph: GraphFacts) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """Return inputs and outputs of a graph by name, as a backend gives them: a packed mask is packed."""
    batch, height, width = (
        extent.max if extent.is_static else None
        for extent in (graph.shape.batch, graph.shape.height, graph.shape.width)
    )
    small = (None if side is None else side // graph.upsample for side in (height, width))
    images = (batch, height, width, 3) if graph.input_form == "uint8" else (batch, 3, height, width)
    packed = graph.mask_encoding == "u8x4"
    columns = width // 4 if packed and width is not None else width
    image, *outputs = (
        TensorSpec(name=name, dtype=np.dtype(dtype), shape=shape)
        for name, dtype, shape in (
            ("image", "uint8" if graph.input_form == "uint8" else "float32", images),
            ("mask", "int32" if packed else "uint8", (batch, height, columns)),
            ("logits", "float32", (batch, len(graph.info.class_names), *small)),
            ("confidence", "uint8", (batch, height, width)),
        )
    )
    return {"image": image}, {spec.name: spec for spec in outputs if spec.name in graph.outputs}


def plan_differences(plan: LoadedEngine, graph: GraphFacts) -> list[str]:
    """Tell one by one how inputs, outputs and sizes of a plan differ from those of the graph that it was built from."""
    inputs, outputs = graph_specs(graph)
    lines = [*spec_differences(inputs, plan.inputs), *spec_differences(outputs, plan.outputs)]
    if not lines:
        low, _, high = plan.profile_range("image")
        least, _, most = graph.image_range
        if (low, high) != (least, most):
            got, wanted = (" to ".join(map(format_shape, bounds)) for bounds in ((low, high), (least, most)))
            lines.append(f"tensor 'image': sizes from {got}, expected {wanted}")
    return lines


def first_mask(outputs: Mapping[str, np.ndarray], graph: GraphFacts) -> np.ndarray:
    """Return the mask ``(h, w) uint8`` of the first image, drawn from the logits where the graph gives no masks."""
    return mask_at(outputs, 0, graph)


def mask_at(outputs: Mapping[str, np.ndarray], index: int, graph: GraphFacts) -> np.ndarray:
    """Return the mask of one image of a batch, as `first_mask` does."""
    if "mask" in outputs:
        return np.asarray(outputs["mask"][index])
    return mask_of_logits(outputs["logits"][index], graph.upsample)


def segmentation_at(outputs: Mapping[str, np.ndarray], index: int, graph: GraphFacts) -> Segmentation:
    """Return what was drawn of one image of a batch: the mask as `mask_at`, the confidence where the graph gives it."""
    confidence = outputs.get("confidence")
    return Segmentation(
        mask=mask_at(outputs, index, graph), confidence=None if confidence is None else confidence[index]
    )


def mask_of_logits(logits: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge logits bilinearly (``align_corners=False``) and take the class; ties go to the lowest index.

    Args:
        logits: ``(K, H, W) float32``.
        scale: Factor.

    Returns:
        ``(scale·H, scale·W) uint8``. One enlarged plane is held at a time.
    """
    best = np.full([side * scale for side in logits.shape[1:]], -np.inf, np.float32)
    mask = np.zeros(best.shape, np.uint8)
    for index, enlarged in enumerate(_enlarged(logits, scale)):
        wins = enlarged > best
        np.copyto(best, enlarged, where=wins)
        np.copyto(mask, np.uint8(index), where=wins)
    return mask


def margin_of_logits(logits: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge logits as `mask_of_logits` does and return the gap between the two best.

    Args:
        logits: ``(K, H, W) float32``, K at least 2.
        scale: Factor.

    Returns:
        ``(scale·H, scale·W) float32``. One enlarged plane is held at a time.
    """
    best, second = (np.full([side * scale for side in logits.shape[1:]], -np.inf, np.float32) for _ in range(2))
    for enlarged in _enlarged(logits, scale):
        second = np.maximum(second, np.minimum(best, enlarged))
        best = np.maximum(best, enlarged)
    return best - second


def _enlarged(logits: np.ndarray, scale: int) -> Iterator[np.ndarray]:
    """Yield the planes one by one.

    Two neighbours are weighted along each axis. As products with a matrix of weights they would wake the threads of
    NumPy's BLAS, which then take the cores from the engine.
    """
    (top, bottom, down), (left, right, across) = (neighbours(side, side * scale) for side in logits.shape[1:])
    for plane in logits:
        rows = plane[top] * (1 - down)[:, None] + plane[bottom] * down[:, None]
        yield rows[:, left] * (1 - across) + rows[:, right] * across


def neighbours(side: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both neighbours of every place and the weight of the second, each ``(count,)``, where `side` become it."""
    source = np.maximum((np.arange(count) + 0.5) * (side / count) - 0.5, 0)
    low = np.minimum(source.astype(np.int64), side - 1)
    return low, np.minimum(low + 1, side - 1), (source - low).astype(np.float32)
