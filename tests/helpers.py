"""Models, images and exported graphs that several tests share. Nothing here asserts."""

from __future__ import annotations

import copy
import fcntl
import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from nrd_trt.data.classes import voc_palette
from nrd_trt.data.preprocessing import planar
from nrd_trt.engine.compat import installed_flavours
from nrd_trt.errors import RunnerError
from nrd_trt.exporting import onnx_export
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.quantize import choose_layers, insert_qdq, plan_quantization
from nrd_trt.machine.cuda import load_cuda
from nrd_trt.model.config import NetworkConfig
from nrd_trt.model.network import Segmentor
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import DecodeSpec, InputForm, InputShape, MaskEncoding, ModelInfo, Range
from tests.golden.keyed_weights import keyed_image, keyed_state_dict

GOLDEN = Path(__file__).parent / "golden"

SMALL: Mapping[str, Any] = {"encoder": "mobilenetv2", "num_classes": 11, "channels": 32, "controller_channels": 32}
"""The quickest configuration; 11 classes have known names, so loading it warns of nothing."""

STATIC = InputShape.static((128, 256))
DYNAMIC = InputShape(
    batch=Range(min=1, opt=2, max=3), height=Range(min=64, opt=128, max=256), width=Range(min=64, opt=256, max=320)
)
SHAPES = {"static": STATIC, "dynamic": DYNAMIC}

shared_folder: Path | None = None
"""Where the workers of one run share what they make; set by conftest, see `run_folder`."""


def model_info(num_classes: int, **changes: Any) -> ModelInfo:
    """Return plain facts for a model without a data set."""
    names = tuple(f"class_{index}" for index in range(num_classes))
    return ModelInfo(**{"class_names": names, "palette": voc_palette(num_classes), **changes})


def keyed_model(encoder: str, num_classes: int, *, info: Mapping[str, Any] | None = None, **config: Any) -> Segmentor:
    """Build a network whose weights depend only on their names and shapes.

    Args:
        encoder: Name in `nrd_trt.model.encoders.ENCODERS`.
        num_classes: K.
        info: Changes to the plain `ModelInfo`.
        **config: Further fields of `NetworkConfig`.
    """
    model = Segmentor(
        NetworkConfig(encoder=encoder, num_classes=num_classes, **config), model_info(num_classes, **(info or {}))
    )
    state = keyed_state_dict({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    if encoder in ("resnetv1c18", "resnetv1c34"):
        # The keyed weights damp bn3 only; BasicBlocks end in bn2 and would grow from block to block.
        for name in state:
            if name.startswith("backbone.layer") and name.endswith((".bn2.weight", ".bn2.bias")):
                state[name] *= 0.1
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return model.eval().requires_grad_(False)


def small_model(**changes: Any) -> Segmentor:
    """Build the quickest network, with changes."""
    return keyed_model(**{**SMALL, **changes})


def same_network(first: Segmentor, second: Segmentor) -> bool:
    """Return whether two networks have one configuration and draw the same logits."""
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    return first.config == second.config and torch.equal(first(images), second(images))


@lru_cache(maxsize=4)
def cached_model(encoder: str, num_classes: int, channels: int = 512) -> Segmentor:
    """Return a shared keyed network; do not change it."""
    return keyed_model(encoder, num_classes, channels=channels, controller_channels=channels)


@cache
def cached_small_model() -> Segmentor:
    """Return the shared quickest network; do not change it."""
    return small_model()


@lru_cache(maxsize=8)
def exported(
    encoder: str, num_classes: int, form: InputForm = "float", shape: str = "static", channels: int = 512
) -> onnx.ModelProto:
    """Return a shared fp32 export with both outputs; do not change it."""
    options = ExportOptions(shape=SHAPES[shape], input_form=form)
    name = f"{encoder}-{num_classes}-{form}-{shape}-{channels}"
    return exported_once(name, lambda: export_onnx(cached_model(encoder, num_classes, channels), options))


@cache
def small_export(form: InputForm = "uint8", shape: str = "static", encoding: MaskEncoding = "uint8") -> onnx.ModelProto:
    """Return the shared fp32 export of the quickest network, both outputs; do not change it."""
    options = ExportOptions(shape=SHAPES[shape], input_form=form, mask_encoding=encoding)
    return exported_once(f"small-{form}-{shape}-{encoding}", lambda: export_onnx(cached_small_model(), options))


@cache
def small_int8() -> onnx.ModelProto:
    """Return `small_export` in int8, every range 10; do not change it."""
    return to_precision(quantized(small_export()), "int8")


def quantized(full: onnx.ModelProto) -> onnx.ModelProto:
    """Return an fp32 file with pairs around the layers that are usually chosen, every range 10."""
    plan = plan_quantization(full, choose_layers(full))
    return insert_qdq(full, plan, dict.fromkeys(plan.tensors, 10.0))


def run_folder() -> Path:
    """Return the folder that the workers of this run share; conftest removes it."""
    global shared_folder
    shared_folder = shared_folder or Path(tempfile.mkdtemp(prefix="nrd_trt-tests-"))
    shared_folder.mkdir(exist_ok=True)  # somebody may tidy the system's temporary folder
    return shared_folder


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Return a file or folder of `run_folder` that `make` writes, unless a worker of this run has; do not change it.

    Who comes while another worker makes it waits for it.
    """
    path = run_folder() / name
    if not path.exists():
        if path in _making:
            raise RuntimeError(f"{name} needs itself while it is made, and would wait for its own lock")
        _making.add(path)
        try:
            with Path(f"{path}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    with tempfile.TemporaryDirectory(dir=run_folder()) as folder:
                        make(Path(folder) / name)
                        Path(folder, name).rename(path)
        finally:
            _making.remove(path)
    return path


_making: set[Path] = set()


def exported_once(name: str, make: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
    """Return an export that one worker of this run makes."""
    return onnx.load(made_once(f"{name}.onnx", lambda path: onnx.save(make(), path)))


Trace = Callable[[nn.Module, tuple[str, ...], InputShape], onnx.ModelProto]


@contextmanager
def traces_remembered() -> Iterator[None]:
    """Trace networks of one form once in a run, which is most of an export: tests/exporting proves that it is one.

    Each worker lists PyTorch's translations of operators once, where PyTorch does so in every export.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        patch.setattr(onnx_export, "_trace", partial(traced_once, onnx_export._trace))
        yield


def own_trace() -> Trace:
    """Return the exporter's trace as it is: of networks whose linear weights it transposes none are remembered."""
    return onnx_export._trace.args[0] if isinstance(onnx_export._trace, partial) else onnx_export._trace


def traced_once(trace: Trace, adapter: nn.Module, tensors: tuple[str, ...], shape: InputShape) -> onnx.ModelProto:
    """Return what `trace` makes of a network, filled with its weights; one worker of this run traces each form.

    The form is the modules with their settings and their `forward`, and the names and shapes of the weights. What a
    `forward` calls is not in it: a test that changes that exports from a process of its own.
    """
    weights = {name: tensor.numpy() for name, tensor in adapter.state_dict().items()}
    form = [(tensors, shape), *((name, array.shape, array.dtype) for name, array in weights.items())]
    form += [(name, type(module), _settings(module)) for name, module in adapter.named_modules()]
    digest = hashlib.sha256(repr(form).encode()).hexdigest()

    def make(path: Path) -> None:
        other = copy.deepcopy(adapter)
        for tensor in other.state_dict().values():
            tensor.normal_() if tensor.is_floating_point() else None  # equal weights would become one
        model = trace(other, tensors, shape)
        for tensor in model.graph.initializer:
            if tensor.name in weights:
                tensor.CopyFrom(TensorProto(name=tensor.name))
            elif math.prod(tensor.dims) > 4:  # sizes and bounds are smaller
                raise RuntimeError(f"{tensor.name}: expected only weights and short constants in a trace")
        onnx.save(model, path)

    model = onnx.load(made_once(f"trace-{digest}.onnx", make))
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return model


def _settings(module: nn.Module) -> list[tuple[str, object]]:
    """What a module's `forward` reads besides weights, its hooks, and where it is written."""
    code = type(module).forward.__code__
    plain = {
        name: value
        for name, value in vars(module).items()
        if name not in ("_parameters", "_buffers", "_modules") and not isinstance(value, np.ndarray | torch.Tensor)
    }
    return [("forward", (code.co_filename, code.co_firstlineno, code.co_code)), *sorted(plain.items())]


def byte_images(seed: int, batch: int, height: int, width: int) -> np.ndarray:
    """Return smooth images, (batch, height, width, 3) uint8 RGB."""
    planes = np.concatenate([keyed_image(seed + index, height, width) for index in range(batch)])
    return np.ascontiguousarray(np.clip(planes * 58 + 116, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def feed(form: InputForm, batch: int, height: int, width: int, seed: int = 11) -> dict[str, np.ndarray]:
    """Return the input of a network of this form."""
    if form == "uint8":
        return {"image": byte_images(seed, batch, height, width)}
    if form == "rgb_float":
        return {"image": planar(byte_images(seed, batch, height, width))}
    return {"image": np.concatenate([keyed_image(seed + index, height, width) for index in range(batch)])}


def infer(model: onnx.ModelProto, image: Mapping[str, np.ndarray], *inner: str) -> dict[str, np.ndarray]:
    """Return the outputs of a file in ONNX Runtime, and these float tensors from within its graph."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {entry.name for entry in (*model.graph.input, *model.graph.output)}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner if name not in known
    )
    with OrtRunner(watched, threads=1) as runner:
        return {**image, **runner.infer(image)} if inner else runner.infer(image)


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Return the share of equal values; arrays of different shapes agree nowhere."""
    return float((first == second).mean()) if first.shape == second.shape else 0.0


def random_decode_inputs(
    spec: DecodeSpec, batch: int, height: int, width: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return theta, guidance and the two coordinate tables, float32; theta of spread 0.5."""
    rng = np.random.default_rng(seed)
    f = spec.patch
    theta = 0.5 * rng.standard_normal((batch, spec.theta_channels, height, width))
    guidance = rng.standard_normal((batch, spec.guidance_channels, f * height, f * width))
    tables = rng.standard_normal((2, f))
    return tuple(array.astype(np.float32) for array in (theta, guidance, *tables))  # type: ignore[return-value]


def missing_for_plans() -> str | None:
    """Return in one line what keeps this machine from running plans on a GPU, or None where nothing does."""
    lines = []
    try:
        load_cuda().close()
    except RunnerError as exc:
        lines.append(str(exc))
    if not installed_flavours():
        lines.append("no TensorRT: `pip install nrd-trt[trt]` or `pip install nrd-trt[rtx]`")
    return "; ".join(lines) or None
