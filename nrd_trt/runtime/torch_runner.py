"""The trained PyTorch model behind the Runner contract: the reference of every comparison."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from nrd_trt.data.preprocessing import normalise
from nrd_trt.decode.reference import upsample
from nrd_trt.errors import ShapeError
from nrd_trt.model.network import Segmentor
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.specs import InputForm, TensorSpec, check_size


class TorchRunner(BaseRunner):
    """Eager fp32 on the model's device.

    Args:
        model: In evaluation mode; not copied.
        input_form: As in the exported file: ``"uint8"`` NHWC RGB or ``"float"`` NCHW normalised.
        margin: Also output ``margin (B, H, W) float32``, the gap between the two best enlarged logits.
        threads: CPU threads of the whole process while entered; None leaves them as they are.
    """

    name = "torch"

    def __init__(
        self, model: Segmentor, input_form: InputForm = "uint8", *, margin: bool = False, threads: int | None = None
    ) -> None:
        super().__init__()
        self._model = model
        self._form = input_form
        self._margin = margin
        self._threads = threads
        self._threads_before = 0

    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        if self._threads is not None:
            self._threads_before = torch.get_num_threads()
            torch.set_num_threads(self._threads)
        byte, single = np.dtype(np.uint8), np.dtype(np.float32)
        if self._form == "uint8":
            image = TensorSpec(name="image", dtype=byte, shape=(None, None, None, 3))
        else:
            image = TensorSpec(name="image", dtype=single, shape=(None, 3, None, None))
        mask = TensorSpec(name="mask", dtype=byte, shape=(None, None, None))
        classes = self._model.config.num_classes
        logits = TensorSpec(name="logits", dtype=single, shape=(None, classes, None, None))
        outputs = {"mask": mask, "logits": logits}
        if self._margin:
            outputs["margin"] = TensorSpec(name="margin", dtype=single, shape=(None, None, None))
        return {"image": image}, outputs

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        image = feed["image"]
        if not image.size:
            raise ShapeError(f"torch: expected at least one image, got {image.shape}.")
        if self._form == "uint8":
            check_size((image.shape[1], image.shape[2]), what="image")
            image = normalise(image, self._model.info)
        device = next(self._model.parameters()).device
        with torch.inference_mode():
            logits = self._model(torch.from_numpy(image).to(device))
            enlarged = upsample(logits, self._model.config.upsample)
            outputs = {"mask": enlarged.argmax(dim=1).to(torch.uint8), "logits": logits}
            if self._margin:
                best = enlarged.topk(2, dim=1).values
                outputs["margin"] = best[:, 0] - best[:, 1]
        return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}

    def _close(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads_before)
