"""The one engine of a run, in the steps that the pipeline takes apart. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from nrd_trt.data.preprocessing import FittedImage, fit_image
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.runtime.engine_thread import EngineThread, Pending
from nrd_trt.runtime.graph_io import first_mask, image_feed
from nrd_trt.specs import Fit, ModelInfo


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An image at the engine's size with the engine's feed."""

    fitted: FittedImage
    feed: Mapping[str, np.ndarray]


class Segmenter:
    """Image of any size in, mask of that size out; from any thread, and in steps.

    Args:
        engine: Entered and left with the segmenter.
        graph: Facts of the file that it runs.
        fit: How images get its size.

    Attributes:
        info: Class names, palette and preprocessing.
        graph: As given.
    """

    def __init__(self, engine: EngineThread, graph: GraphFacts, fit: Fit) -> None:
        self._engine, self.graph, self._fit = engine, graph, fit

    @property
    def info(self) -> ModelInfo:
        """Class names, palette and preprocessing."""
        return self.graph.info

    @property
    def runner_name(self) -> str:
        """Which backend runs."""
        return self._engine.runner.name

    @property
    def arithmetic(self) -> str:
        """``"native"`` or ``"simulated"``; known once entered."""
        return self._engine.runner.arithmetic

    def segment(self, rgb: np.ndarray) -> np.ndarray:
        """Segment one image.

        Args:
            rgb: ``(H, W, 3) uint8 RGB`` of any size.

        Returns:
            Class indices ``(H, W) uint8``, owned by the caller.

        Raises:
            ShapeError: `rgb` is no such array, or too large for a bundle built with ``--fit pad``.
            RunnerError: The backend failed, or the segmenter is not entered.
        """
        prepared = self.prepare(rgb)
        return prepared.fitted.restore(self.mask(self.begin(prepared).result()))

    def prepare(self, rgb: np.ndarray) -> Prepared:
        """Bring an image to the engine's size and form."""
        fitted = fit_image(rgb, self.graph.shape, self.graph.info, self._fit)
        return Prepared(fitted=fitted, feed=image_feed(fitted.image, self.graph))

    def begin(self, prepared: Prepared) -> Pending:
        """Queue a run; its result are the engine's outputs by name."""
        return self._engine.begin(prepared.feed)

    def mask(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the mask ``(h, w) uint8`` of the first image at the engine's size."""
        return first_mask(outputs, self.graph)

    def __enter__(self) -> Segmenter:
        self._engine.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.__exit__(kind, error, trace)
