"""An engine that looks at images by a protocol: checks that it can, and draws one mask of all views."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nrd_trt.data.preprocessing import check_image
from nrd_trt.data.views import View, Viewing, views_of
from nrd_trt.errors import ConfigError
from nrd_trt.runtime.blending import Network, Seams, draw_views, view_fitting, view_image
from nrd_trt.runtime.graph_io import Segmentation
from nrd_trt.specs import InputShape, ModelInfo, Size, format_size

if TYPE_CHECKING:
    from nrd_trt.runtime.engine import Engine


class Viewer:
    """Segments images with an engine as a `Viewing` says.

    Where the engine gives logits they are averaged, and the mask is drawn from them at the image's size. Of one view of
    an engine with masks alone the mask is brought to the image's size by the nearest pixel.

    Args:
        engine: Opened by the caller, who ends it.
        viewing: What is asked for.

    Attributes:
        viewing: What is asked for.
        seams: How far overlapping windows agreed since it was set.

    Raises:
        ConfigError: The engine gives no logits where several views need them, or takes one size where others are
            needed, or not that of the window.
    """

    def __init__(self, engine: Engine, viewing: Viewing) -> None:
        self._engine, self.viewing, self.seams = engine, viewing, Seams()
        self._takes_any = engine.runner.name == "torch"
        resample = "cv2" if viewing.is_preset else engine.resample
        self._network = Network(
            logits_of=engine.logits, info=engine.info, upsample=engine.graph.upsample, resample=resample
        )
        if not viewing.is_plain:
            self._check_outputs()
            self._check_sizes()

    @property
    def info(self) -> ModelInfo:
        """Class names, palette and preprocessing."""
        return self._engine.info

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against masks that were drawn from windows, after the last image."""
        agreement, head = self.seams.agreement, self._engine.graph.head
        if agreement is None or head == "nrd_no_aspp":
            return ()
        return (
            f"the network pools over each window, so masks may change where windows end: {agreement:.4f} of the pixels "
            "that several windows show have the class of all in one alone; larger windows, or smaller steps, help.",
        )

    @property
    def has_logits(self) -> bool:
        """Whether masks are drawn from averaged logits."""
        return not self.viewing.is_plain and "logits" in self._engine.graph.outputs

    def segment(self, rgb: np.ndarray) -> Segmentation:
        """Segment an image ``(H, W, 3) uint8 RGB``; the confidence is None where the engine has no such output.

        Raises:
            ConfigError: A view has a size that the engine does not take.
            ShapeError: `rgb` is no such array.
            RunnerError: The backend failed.
        """
        check_image(rgb)
        engine = self._engine
        if self.viewing.is_plain:
            fitted = engine.fitted(rgb)
            return engine.draw(fitted.image).restored(fitted)
        views = self._views(rgb.shape[:2])
        if self.has_logits:
            confidence = "confidence" in engine.graph.outputs
            return draw_views(rgb, views, self._network, confidence=confidence, seams=self.seams)
        image = view_image(rgb, views[0], engine.info, self._network.resample)
        return engine.draw(image).restored(view_fitting(views[0], rgb.shape[:2]))

    def _views(self, image_hw: Size) -> list[View]:
        engine = self._engine
        views = views_of(image_hw, self.viewing, shape=engine.graph.shape, fit=engine.fit, encoder=engine.graph.encoder)
        for view in views:
            if not self._takes(view.run_hw):
                raise ConfigError(
                    f"protocol={self.viewing.protocol!r}: an image of {format_size(image_hw)} needs a network of "
                    f"{format_size(view.run_hw)}, the engine takes {_range(engine.graph.shape)}; build one "
                    "with a wider dynamic=, or take protocol='slide'."
                )
        return views

    def _takes(self, size_hw: Size) -> bool:
        return self._takes_any or self._engine.graph.shape.covers(size_hw)

    def _check_outputs(self) -> None:
        outputs = self._engine.graph.outputs
        if "logits" not in outputs and not self.viewing.is_single:
            raise ConfigError(
                f"protocol={self.viewing.protocol!r}: several views are averaged by their logits, the engine gives "
                f"{' and '.join(outputs)} only; build one: "
                "nrd_trt.build('CHECKPOINT', 'NAME.nrd', outputs=('mask', 'logits'))"
            )

    def _check_sizes(self) -> None:
        """Refuse what an engine of one size can never do; an image may still ask too much of one of several."""
        viewing, shape = self.viewing, self._engine.graph.shape
        if viewing.protocol == "slide":
            if viewing.tile is not None and not self._takes(viewing.tile):
                raise ConfigError(
                    f"tile={format_size(viewing.tile)}: expected a size of the engine, {_range(shape)}; leave it out, "
                    "or build another engine with size= or dynamic=."
                )
            return
        fixed = shape.height.is_static and shape.width.is_static and not self._takes_any
        if fixed and (viewing.protocol != "whole" or viewing.scales != (1.0,)):
            raise ConfigError(
                f"protocol={viewing.protocol!r}: the views of an image have several sizes, the engine takes "
                f"{_range(shape)} only; take protocol='slide', or build an engine with dynamic=."
            )


def _range(shape: InputShape) -> str:
    low, high = (shape.height.min, shape.width.min), (shape.height.max, shape.width.max)
    return format_size(low) if low == high else f"{format_size(low)} to {format_size(high)}"
