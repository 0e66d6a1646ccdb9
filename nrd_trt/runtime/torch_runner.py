"""The trained PyTorch model behind the Runner contract: the reference of every comparison.

On a GPU the decode of an NRD network runs in its kernels, which neither store nor enlarge logits for a mask.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from nrd_trt.data.preprocessing import normalise
from nrd_trt.decode.cuda_op import find_fault, patch_decode, patch_decode_mask
from nrd_trt.decode.extension import load_extension
from nrd_trt.decode.reference import confidence_of, upsample
from nrd_trt.errors import MissingDependencyError, PluginError, ShapeError
from nrd_trt.model.heads import NrdHead
from nrd_trt.model.network import Segmentor
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.specs import InputForm, TensorSpec, check_size


class TorchRunner(BaseRunner):
    """Eager fp32 on the model's device.

    Args:
        model: In evaluation mode; not copied.
        input_form: As in the exported file, see `nrd_trt.specs.InputForm`.
        logits: Also output ``logits (B, K, H/s, W/s) float32``.
        margin: Also output ``margin (B, H, W) float32``, the gap between the two best enlarged logits.
        confidence: Also output ``confidence (B, H, W) uint8``, 255 times the softmax of the class drawn.
        threads: CPU threads of the whole process while entered; None leaves them as they are.

    Entering it with an NRD network on a GPU compiles the decode's kernels on their first use. Where that is not
    possible it warns and decodes by the PyTorch reference, which is slower and gives the same masks.
    """

    name = "torch"

    def __init__(
        self,
        model: Segmentor,
        input_form: InputForm = "uint8",
        *,
        logits: bool = True,
        margin: bool = False,
        confidence: bool = False,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self._model = model
        self._form = input_form
        self._logits = logits
        self._margin = margin
        self._confidence = confidence
        self._threads = threads
        self._threads_before = 0
        self._has_kernels = False

    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        self._has_kernels = self._device.type == "cuda" and _load_kernels(self._model)
        if self._threads is not None:
            self._threads_before = torch.get_num_threads()
            torch.set_num_threads(self._threads)
        byte, single = np.dtype(np.uint8), np.dtype(np.float32)
        if self._form == "uint8":
            image = TensorSpec(name="image", dtype=byte, shape=(None, None, None, 3))
        else:
            image = TensorSpec(name="image", dtype=single, shape=(None, 3, None, None))
        full = (None, None, None)
        outputs = {"mask": TensorSpec(name="mask", dtype=byte, shape=full)}
        if self._logits:
            classes = self._model.config.num_classes
            outputs["logits"] = TensorSpec(name="logits", dtype=single, shape=(None, classes, None, None))
        if self._margin:
            outputs["margin"] = TensorSpec(name="margin", dtype=single, shape=full)
        if self._confidence:
            outputs["confidence"] = TensorSpec(name="confidence", dtype=byte, shape=full)
        return {"image": image}, outputs

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        image = feed["image"]
        if not image.size:
            raise ShapeError(f"torch: expected at least one image, got {image.shape}.")
        if self._form == "rgb_float":
            image = image.transpose(0, 2, 3, 1)
        if self._form != "float":
            check_size((image.shape[1], image.shape[2]), what="image ")
            image = normalise(image, self._model.info)
        with torch.inference_mode():
            images = torch.from_numpy(image).to(self._device)
            outputs = self._draw_by_kernels(images) if self._has_kernels else self._draw(images)
        return {name: outputs[name].cpu().numpy() for name in self.outputs}

    def _draw(self, images: Tensor) -> dict[str, Tensor]:
        """Return every output by the PyTorch reference."""
        logits = self._model(images)
        enlarged = upsample(logits, self._model.config.upsample)
        return {"mask": enlarged.argmax(dim=1).to(torch.uint8), "logits": logits, **self._of_enlarged(enlarged)}

    def _draw_by_kernels(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs that were asked for by the decode's kernels."""
        spec = self._model.config.decode
        inputs = self._model.decode_inputs(images)
        outputs = {"mask": patch_decode_mask(*inputs, spec)}
        if self._logits or self._margin or self._confidence:
            outputs["logits"] = patch_decode(*inputs, spec)
        if self._margin or self._confidence:
            outputs |= self._of_enlarged(upsample(outputs["logits"], spec.upsample))
        return outputs

    def _of_enlarged(self, enlarged: Tensor) -> dict[str, Tensor]:
        """Return the outputs that were asked for of enlarged logits, besides the mask."""
        margin = {"margin": _margin(enlarged)} if self._margin else {}
        return {**margin, "confidence": confidence_of(enlarged)} if self._confidence else margin

    def _close(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads_before)

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device


def _margin(enlarged: Tensor) -> Tensor:
    best = enlarged.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def _load_kernels(model: Segmentor) -> bool:
    """Whether the decode's kernels can draw this model's masks here; say why where they should and cannot."""
    if not isinstance(model.decode_head, NrdHead):
        return False
    spec = model.config.decode
    fault = find_fault(spec)
    if fault is None:
        try:
            load_extension()
            return True
        except (MissingDependencyError, PluginError) as exc:
            fault = str(exc)
    warnings.warn(f"torch: the decode runs by its slower PyTorch reference, with the same masks: {fault}", stacklevel=2)
    return False
