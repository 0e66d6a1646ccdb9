"""Checkpoints: reading, loading, saving. torch and safetensors only; `nrd_trt.model.recognise` tells what is in them.

A checkpoint is an mmseg ``.pth`` (``{'meta', 'state_dict', 'optimizer'}`` or a bare state dict) or a ``.safetensors``
file, whose metadata may carry what shapes alone do not tell: classes, preprocessing, dilations, output stride, patch;
and widths, where they are not the encoder's own.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nrd_trt.errors import CheckpointError, ConfigError
from nrd_trt.files import atomic_file
from nrd_trt.json_files import decode_json
from nrd_trt.model.config import NetworkConfig
from nrd_trt.model.mmseg import mmseg_facts
from nrd_trt.model.network import Segmentor
from nrd_trt.model.pickles import check_pickles
from nrd_trt.model.recognise import StoredFacts, StoredInfo, describe, expected_shapes, nearest, recognise
from nrd_trt.specs import CheckpointOptions

_INFO_KEY = "nrd_trt.info"
_CONFIG_KEY = "nrd_trt.config"
_STORED = ("num_classes", "hidden", "patch", "dilations", "output_stride")
_WIDTHS = ("widths", "aspp_channels")  # stored where they are not the plan's
_NOT_DEPLOYED = ("auxiliary_head.", "backbone.norm.", "backbone.head.")  # the last two are Twins' ImageNet classifier
_UNUSED = "decode_head.conv_seg."  # by an NRD head
_COUNTER = "num_batches_tracked"  # of batch norm, which the network does not use
_SHOWN = 10
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
_SHARED = 2  # two names may have the same values
# Raised by metadata of other kinds than ours.
_FOREIGN = (AttributeError, OverflowError, RuntimeError, TypeError, ValueError)


def load_checkpoint(path: Path, options: CheckpointOptions | None) -> Segmentor:
    """Load a trained network; see `nrd_trt.model.load_model`."""
    state, facts = _read(path)
    said = options or CheckpointOptions()
    try:
        config = recognise({name: tuple(tensor.shape) for name, tensor in state.items()}, facts, said)
        info = describe(config.num_classes, facts.info, said)
        _check_tensors(state, config)  # before the network has memory
    except (CheckpointError, ConfigError) as exc:
        raise type(exc)(f"{path}: {exc}") from exc
    if any(getattr(config, name) is not None and getattr(facts, name) is None for name in _WIDTHS):
        warnings.warn(
            f"{path}: a {config.encoder} of other widths than its own, of which the metadata say nothing: they are "
            "those of the tensors' shapes",
            stacklevel=2,
        )
    model = Segmentor(config, info, options)
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()}, strict=False)
    return model.eval().requires_grad_(False)


def load_encoder(encoder: nn.Module, path: Path) -> None:
    """Start an encoder from a checkpoint's weights, such as mmseg's ImageNet ones.

    Args:
        encoder: Gets the weights.
        path: ``.pth`` or ``.safetensors`` of an encoder alone, or of a network whose ``backbone`` it is; whatever else
            the file holds (classifier, head) is left out. MobileNetV2 may have torchvision's names (``features.…``),
            which number the same layers in the same order.

    Raises:
        CheckpointError: The file is unreadable, or lacks a tensor of the encoder or has it in another shape.
    """
    state, _ = _read(path)
    given = {name.removeprefix("backbone."): tensor for name, tensor in state.items() if not name.endswith(_COUNTER)}
    own = {name: tensor for name, tensor in encoder.state_dict().items() if not name.endswith(_COUNTER)}
    if layers := [tensor for name, tensor in given.items() if name.startswith("features.")]:
        given = dict(zip(own, layers, strict=False))
    wrong = [name for name, tensor in own.items() if name not in given or given[name].shape != tensor.shape]
    if wrong:
        raise CheckpointError(
            f"{path}: expected the {len(own)} tensors of the encoder, {len(wrong)} are missing or of another shape "
            f"({_some(wrong)}); give a checkpoint of the recipe's encoder."
        )
    encoder.load_state_dict({name: given[name] for name in own}, strict=False)


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a ``.safetensors`` file says of its run, such as the recipe; nothing of a ``.pth``.

    Raises:
        CheckpointError: The file is unreadable.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path}: not a readable safetensors file ({exc}); fetch or export it again.") from exc


def save_checkpoint(
    model: Segmentor, path: Path, *, half: bool = False, extra: Mapping[str, str] | None = None
) -> None:
    """Write a model as ``.safetensors`` under mmseg's names, atomically.

    Args:
        model: The model to store; training-only state is left out.
        path: Target; replaced when it exists.
        half: Store floating-point tensors in 16 bits. Batch-norm statistics too, so evaluate what was stored.
        extra: Further metadata, e.g. recipe, step, seed.

    Raises:
        CheckpointError: A weight does not fit 16 bits.
    """
    metadata = dict(extra or {})
    metadata[_INFO_KEY] = json.dumps(asdict(model.info))
    config = asdict(model.config)
    stored_names = (*_STORED, *(name for name in _WIDTHS if config[name] is not None))
    stored_names += ("fix_window_mask",) if model.config.fix_window_mask else ()
    metadata[_CONFIG_KEY] = json.dumps({name: config[name] for name in stored_names})
    tensors = {}
    for name, tensor in model.state_dict().items():
        stored = tensor.half() if half and tensor.is_floating_point() else tensor
        if stored.is_floating_point() and not torch.isfinite(stored).all():
            raise CheckpointError(f"{path}: tensor {name} does not fit {stored.dtype}; save it without half.")
        tensors[name] = stored.contiguous()
    with atomic_file(path) as temporary:
        temporary.write_bytes(_serialise(tensors, metadata))


def _serialise(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file, a function of the content: the library writes metadata in any order."""
    plain = save(tensors)
    start = 8 + int.from_bytes(plain[:8], "little")
    described = {"__metadata__": dict(sorted(metadata.items())), **json.loads(plain[8:start])}
    header = json.dumps(described, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    return b"".join((len(header).to_bytes(8, "little"), header, memoryview(plain)[start:]))


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Tensor], StoredFacts]:
    """Return the tensors under their plain names, and what the file tells besides."""
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a checkpoint file, found none; check the path.")
    state, facts = (_read_safetensors if path.suffix == ".safetensors" else _read_pickle)(path)
    _check_memory(path, state)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name: t for name, t in state.items() if not name.startswith(_NOT_DEPLOYED)}, facts


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], StoredFacts]:
    metadata = read_metadata(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path}: not a readable safetensors file ({exc}); fetch or export it again.") from exc
    try:
        info = decode_json(metadata.get(_INFO_KEY, "{}"), StoredInfo)
        facts = decode_json(metadata.get(_CONFIG_KEY, "{}"), StoredFacts)
    except _FOREIGN as exc:
        raise CheckpointError(_foreign_message(path, exc)) from exc
    return tensors, replace(facts, info=info)


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], StoredFacts]:
    # NumPy scalars and dtypes, which mmcv writes into `meta`, hold numbers only. Files of NumPy 1 name the module
    # numpy.core, those of NumPy 2 numpy._core.
    harmless: list[Any] = [(_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    harmless += [np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}]
    try:
        check_pickles(path)
        with torch.serialization.safe_globals(harmless):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    except Exception as exc:  # torch.load raises many types on damaged files
        raise CheckpointError(_pickle_message(path, exc)) from exc
    state = data
    if isinstance(data, Mapping):
        state = next((data[key] for key in ("state_dict", "model") if isinstance(data.get(key), Mapping)), data)
    named = isinstance(state, Mapping) and all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items())
    if not named or not state:
        raise CheckpointError(
            f"{path}: expected a state dict of tensors by name (or 'state_dict': one), got {type(data).__name__}; "
            "save the model with torch.save(model.state_dict(), path)."
        )
    meta = data.get("meta", {}) if state is not data else {}
    try:
        return dict(state), mmseg_facts(meta if isinstance(meta, Mapping) else {})
    except _FOREIGN as exc:
        raise CheckpointError(_foreign_message(path, exc)) from exc


def _number(kind: np.dtype, data: bytes) -> Any:
    """Stand for NumPy's function, which also makes zeros of any size without data."""
    return np.frombuffer(data, kind, 1)[0]


def _foreign_message(path: Path, exc: Exception) -> str:
    return f"{path}: the metadata is not what this toolkit or mmseg writes ({exc}); store the state dict without it."


def _pickle_message(path: Path, exc: Exception) -> str:
    refused = re.search(r"(?:GLOBAL|global|class) ([\w.]+\.[\w.]+)|GLOBAL (\w+)", str(exc))
    if isinstance(exc, pickle.UnpicklingError) and refused:
        return (
            f"{path}: expected plain tensors, got an object of type {refused[1] or refused[2]}, which could run code "
            "when loaded; save only the state dict."
        )
    first_line = (str(exc) or type(exc).__name__).splitlines()[0][:200]
    return f"{path}: not a readable PyTorch checkpoint ({first_line}); it may be truncated or of another kind."


# --- checking --------------------------------------------------------------------------------------------------------


def _check_memory(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` unless the tensors are plain ones and take as much memory as the file suggests.

    A tensor may claim strides of 0, or a size that its file never held; nothing reads values before this.
    """
    for name, tensor in state.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
        if not plain or tensor.is_quantized or tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: tensor {name}: expected a plain tensor of floats or integers, got {tensor.dtype} on "
                f"{tensor.device.type}, {str(tensor.layout).removeprefix('torch.')}; save the float32 weights."
            )
    claimed, size = {name: tensor.numel() * tensor.itemsize for name, tensor in state.items()}, path.stat().st_size
    if sum(claimed.values()) > _SHARED * size:
        largest = max(claimed, key=lambda name: claimed[name])
        raise CheckpointError(
            f"{path}: expected tensors of about the file's {size / 2**20:.1f} MiB, got "
            f"{sum(claimed.values()) / 2**20:.1f} MiB ({largest} {list(state[largest].shape)} is the largest); save "
            "tensors that own their values, as of clone()."
        )


def _check_tensors(state: Mapping[str, Tensor], config: NetworkConfig) -> None:
    """Raise `CheckpointError` that lists every missing, unexpected or misshapen tensor, or those not finite."""
    shapes, expected = {name: tuple(tensor.shape) for name, tensor in state.items()}, expected_shapes(config)
    optional = {name for name in expected if name.endswith(_COUNTER)}
    if config.is_nrd:
        optional.update(name for name in expected if name.startswith(_UNUSED))
    faults = {
        "missing": sorted(expected.keys() - shapes.keys() - optional),
        "unexpected": sorted(shapes.keys() - expected.keys()),
        "misshapen": [
            f"{name} (expected {list(expected[name])}, got {list(shapes[name])})"
            for name in sorted(expected.keys() & shapes.keys())
            if expected[name] != shapes[name]
        ],
        "not finite": [n for n, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()],
    }
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in faults.items() if names)
        raise CheckpointError(f"read as {config.encoder} with head {config.head}; {listed}. {nearest(shapes)}")


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
