"""The model ``NAME_bundle`` of a Triton server's Python backend: requests with images in, masks out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nrd_trt.data.preprocessing import FittedImage
from nrd_trt.errors import NrdTrtError, RunnerError, ShapeError
from nrd_trt.runtime.engine import open_bundle
from nrd_trt.runtime.graph_io import Segmentation
from nrd_trt.specs import Size


class TritonPythonModel:
    """What the Python backend makes one of for each instance of the model, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle and start its runner.

        Args:
            args: What the backend gives: where the model lies, its configuration, and its device.

        Raises:
            NrdTrtError: The bundle is damaged or cannot be run here; the server gives this as the reason.
        """
        import triton_python_backend_utils as backend  # exists within the server only

        self._backend = backend
        folder = Path(args["model_repository"])
        config = json.loads(args["model_config"])
        settings = {key: value["string_value"] for key, value in config["parameters"].items()}
        paths = {key: folder / settings[key] for key in ("plugin", "verify_key") if key in settings}
        self._engine = open_bundle(
            folder / settings["bundle"],
            runner=settings.get("runner", "auto"),
            threads=int(settings["threads"]) if "threads" in settings else None,
            device=int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None,
            **paths,
        ).__enter__()
        self._warming = bool(config.get("model_warmup"))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request with its masks, or with what is wrong with it; the images of all share runs.

        Args:
            requests: Each with ``image (N, H, W, 3) uint8 RGB``.

        Returns:
            A response for each: ``mask (N, H, W) uint8``, with ``confidence`` likewise where the bundle gives it; or an
            error.

        Raises:
            RunnerError: What should warm the model up arrived as something else, so the model cannot be loaded.
        """
        if self._warming:
            self._warming = False
            _check_arrays(self._images(requests[0]))
        fitted: list[list[FittedImage] | NrdTrtError] = [self._fitted(request) for request in requests]
        good = [images for images in fitted if isinstance(images, list)]
        try:
            drawn = iter(self._engine.draw_all([image.image for images in good for image in images]))
        except NrdTrtError as exc:
            return [self._refusal(images if isinstance(images, NrdTrtError) else exc) for images in fitted]
        return [
            self._refusal(images)
            if isinstance(images, NrdTrtError)
            else self._answer([next(drawn).restored(image) for image in images])
            for images in fitted
        ]

    def finalize(self) -> None:
        """Free what the runner holds."""
        self._engine.__exit__(None, None, None)

    def _fitted(self, request: Any) -> list[FittedImage] | NrdTrtError:
        images = self._images(request)
        try:
            if images.size == 0:
                raise ShapeError(f"image: expected (N, H, W, 3) with at least one pixel, got {images.shape}.")
            return [self._engine.fitted(image) for image in images]
        except NrdTrtError as exc:
            return exc

    def _images(self, request: Any) -> np.ndarray:
        images: np.ndarray = self._backend.get_input_tensor_by_name(request, "image").as_numpy()
        return images

    def _answer(self, drawn: Sequence[Segmentation]) -> Any:
        arrays = {"mask": [one.mask for one in drawn]}
        if confidences := [one.confidence for one in drawn if one.confidence is not None]:
            arrays["confidence"] = confidences
        return self._backend.InferenceResponse(
            [self._backend.Tensor(name, np.stack(stack)) for name, stack in arrays.items()]
        )

    def _refusal(self, error: NrdTrtError) -> Any:
        kinds = self._backend.TritonError
        code = kinds.INVALID_ARG if isinstance(error, ValueError) else kinds.INTERNAL
        return self._backend.InferenceResponse(error=kinds(str(error), code))


def warmup_image(size_hw: Size) -> np.ndarray:
    """Return the image ``(h, w, 3) uint8`` that the server sends first, from a file that is packaged."""
    height, width = size_hw
    return (np.arange(height * width * 3) % 251).astype(np.uint8).reshape(height, width, 3)


def _check_arrays(images: np.ndarray) -> None:
    """Raise `RunnerError` unless images arrive as they are: an older Python backend misreads NumPy 2 without a word."""
    if not np.array_equal(images[0], warmup_image(images.shape[1:3])):
        raise RunnerError(
            f"NumPy {np.__version__}: expected the image that warms the model up, got another; install 'numpy<2' in "
            "the Python of the server's Python backend, which is older than NumPy 2, or use a newer server."
        )
