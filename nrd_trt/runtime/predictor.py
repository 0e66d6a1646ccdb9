"""A bundle ready for use: image of any size in, mask of that size out."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

from nrd_trt.data.preprocessing import check_fit, fit_image
from nrd_trt.engine.bundle import read_bundle
from nrd_trt.runtime.mask_runner import MaskRunner
from nrd_trt.runtime.select import make_runner


class Predictor:
    """Run a bundle on RGB images.

    Hashes are checked on opening; the runner starts with the first image, or on entering a ``with`` block.

    Args:
        path: A ``NAME.nrd`` folder.
        runner: See `nrd_trt.runtime.select.make_runner`.
        threads: CPU threads; None leaves the choice to the backend.
        plugin: Library of a plan that needs one; None looks for it.

    Attributes:
        bundle: The opened bundle.
        info: Class names, palette and preprocessing.

    Raises:
        BundleError: A file of the bundle was changed or is missing.
        PluginError: The library asked for is not that of the build, or cannot be used here.
    """

    def __init__(
        self, path: str | Path, *, runner: str = "auto", threads: int | None = None, plugin: Path | None = None
    ) -> None:
        self.bundle = read_bundle(path)
        self.info = self.bundle.graph.info
        self._fit = check_fit(self.bundle.facts["fit"])
        self._runner = make_runner(self.bundle, runner, threads=threads, plugin=plugin)
        self._entered = False

    @property
    def runner_name(self) -> str:
        """Which backend runs."""
        return self._runner.name

    @property
    def arithmetic(self) -> str:
        """``"native"`` or ``"simulated"``; known once an image was run."""
        return self._runner.arithmetic

    def predict(self, rgb: np.ndarray) -> np.ndarray:
        """Segment one image.

        Args:
            rgb: ``(H, W, 3) uint8 RGB`` of any size.

        Returns:
            Class indices ``(H, W) uint8``, owned by the caller.

        Raises:
            ShapeError: `rgb` is no such array, or too large for a bundle built with ``--fit pad``.
            RunnerError: The backend failed.
        """
        graph = self.bundle.graph
        fitted = fit_image(rgb, graph.shape, graph.info, self._fit)
        self.__enter__()
        return fitted.restore(MaskRunner(self._runner, graph)(fitted.image))

    def __enter__(self) -> Predictor:
        if not self._entered:
            self._runner.__enter__()
            self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = False
        self._runner.__exit__(kind, error, trace)
