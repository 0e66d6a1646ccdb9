"""Checkpoints of the NRD network: reading, recognising, loading, saving. torch and safetensors only.

A checkpoint is an mmseg ``.pth`` (``{'meta', 'state_dict', 'optimizer'}`` or a bare state dict) or a ``.safetensors``
file, whose metadata may carry what shapes alone do not tell: classes, preprocessing, dilations, patch size.
"""

from __future__ import annotations

import ast
import importlib
import json
import math
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nrd_trt.data.classes import known_classes, voc_palette
from nrd_trt.errors import CheckpointError, ConfigError
from nrd_trt.files import atomic_file
from nrd_trt.model.configs import nearest_config
from nrd_trt.model.encoders import RESNETS
from nrd_trt.model.network import Head, NrdConfig, NrdSegmentor
from nrd_trt.specs import ModelInfo

_INFO_KEY = "nrd_trt.info"
_CONFIG_KEY = "nrd_trt.config"
_CONTROLLER = "decode_head.classifier.classifier"
_UNUSED = ("auxiliary_head.", "decode_head.conv_seg.")
_SHOWN = 10
_FOREIGN = (AttributeError, SyntaxError, TypeError, ValueError)  # raised by metadata of other kinds than ours


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """What the user says about a checkpoint; None leaves it to the file and the released defaults."""

    num_classes: int | None = None
    hidden: int | None = None
    patch: int | None = None
    dilations: tuple[int, int, int, int] | None = None
    class_names: tuple[str, ...] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    bgr: bool | None = None


def load_model(path: str | Path, options: CheckpointOptions | None = None) -> NrdSegmentor:
    """Load a trained NRD model in evaluation mode.

    Args:
        path: ``.pth`` or ``.safetensors``.
        options: Overrides; see `CheckpointOptions`.

    Returns:
        The model on the CPU in float32. ``model(images (B, 3, H, W) float32 normalised)`` gives logits
        ``(B, K, f·H/32, f·W/32)``; ``model.predict(images)`` gives ``(B, H, W) int64``.

    Raises:
        CheckpointError: The file is unreadable, holds other types than plain tensors, or another model.
        ConfigError: An option contradicts the checkpoint.
    """
    path, options = Path(path), options or CheckpointOptions()
    state, facts = _read(path)
    try:
        config = _recognise(state, facts, options)
        info = _describe(config.num_classes, facts, options)
    except (CheckpointError, ConfigError) as exc:
        raise type(exc)(f"{path}: {exc}") from exc
    except _FOREIGN as exc:
        raise CheckpointError(_foreign_message(path, exc)) from exc
    model = NrdSegmentor(config, info)
    _check_tensors(path, state, model)
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()}, strict=False)
    return model.eval().requires_grad_(False)


def save_checkpoint(
    model: NrdSegmentor, path: Path, *, half: bool = False, extra: Mapping[str, str] | None = None
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
    config = model.config
    metadata = dict(extra or {})
    metadata[_INFO_KEY] = json.dumps(model.info.to_dict())
    metadata[_CONFIG_KEY] = json.dumps(
        {
            "num_classes": config.num_classes,
            "hidden": config.hidden,
            "patch": config.patch,
            "dilations": config.dilations,
        }
    )
    tensors = {}
    for name, tensor in model.state_dict().items():
        stored = tensor.half() if half and tensor.is_floating_point() else tensor
        if stored.is_floating_point() and not torch.isfinite(stored).all():
            raise CheckpointError(f"{path}: tensor {name} does not fit {stored.dtype}; save it without half.")
        tensors[name] = stored.contiguous()
    with atomic_file(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))  # save_file would make a file that only its owner may read


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors under their plain names, and whatever the file says besides."""
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a checkpoint file, found none; check the path.")
    if path.suffix == ".safetensors":
        state, facts = _read_safetensors(path)
    else:
        state, facts = _read_pickle(path)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name: t for name, t in state.items() if not name.startswith("auxiliary_head.")}, facts


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path}: not a readable safetensors file ({exc}); fetch or export it again.") from exc
    try:
        facts = {key: json.loads(metadata[key]) for key in (_INFO_KEY, _CONFIG_KEY) if key in metadata}
    except ValueError as exc:
        raise CheckpointError(_foreign_message(path, exc)) from exc
    return tensors, {"info": facts.get(_INFO_KEY, {}), **facts.get(_CONFIG_KEY, {})}


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with torch.serialization.safe_globals(_numpy_types()):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # torch.load raises many types on damaged files
        raise CheckpointError(_pickle_message(path, exc)) from exc
    state = data
    if isinstance(data, Mapping):
        state = next((data[key] for key in ("state_dict", "model") if isinstance(data.get(key), Mapping)), data)
    if not isinstance(state, Mapping) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(
            f"{path}: expected a state dict of tensors (bare or under 'state_dict'), got {type(data).__name__}; "
            "save the model with torch.save(model.state_dict(), path)."
        )
    meta = data.get("meta", {}) if state is not data else {}
    try:
        return dict(state), _mmseg_facts(meta if isinstance(meta, Mapping) else {})
    except _FOREIGN as exc:
        raise CheckpointError(_foreign_message(path, exc)) from exc


def _numpy_types() -> list[Any]:
    """NumPy scalars and dtypes, which mmcv writes into ``meta``; they hold numbers only."""
    scalar = importlib.import_module("numpy._core.multiarray").scalar
    # Files of NumPy 1 name the module numpy.core, those of NumPy 2 numpy._core.
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [np.dtype, *names, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}]


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


def _mmseg_facts(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Read classes, palette and normalisation out of mmseg's ``meta``."""
    info: dict[str, Any] = {}
    names = meta.get("CLASSES") or meta.get("dataset_meta", {}).get("classes")
    palette = meta.get("PALETTE") or meta.get("dataset_meta", {}).get("palette")
    if names:
        info["class_names"] = list(names)
    if palette:
        info["palette"] = [list(map(int, colour)) for colour in palette]
    config = re.search(r"img_norm_cfg\s*=\s*dict\((.*?)\)", str(meta.get("config", "")), re.DOTALL)
    for key in ("mean", "std") if config else ():
        if found := re.search(rf"{key}=(\[[^\]]*\])", config[1]):  # type: ignore[index]
            info[key] = ast.literal_eval(found[1])
    if config and (found := re.search(r"to_rgb=(True|False)", config[1])):
        info["channel_order"] = "rgb" if found[1] == "True" else "bgr"
    return {"info": info}


# --- recognising -----------------------------------------------------------------------------------------------------


def _recognise(state: Mapping[str, Tensor], facts: Mapping[str, Any], options: CheckpointOptions) -> NrdConfig:
    """Read the configuration off the tensors' names and shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    head: Head = "nrd" if "decode_head.bottleneck.conv.weight" in shapes else "nrd_no_aspp"
    guidance = "decode_head.c1_bottleneck.1.conv.weight" if head == "nrd" else "decode_head.c1_bottleneck.conv.weight"
    needed = (f"{_CONTROLLER}.0.conv.weight", f"{_CONTROLLER}.1.weight", guidance, "decode_head.cat_norm.weight")
    missing = [name for name in needed if len(shapes.get(name, ())) not in (1, 4)]
    encoder = _encoder(shapes)
    if missing or encoder is None:
        what = f"no {', '.join(missing)}" if missing else "an encoder of another kind"
        raise CheckpointError(
            f"expected an NRD head on a known encoder, got {what}; {_nearest(shapes)} "
            "Other heads (FCN, DeepLabV3+, FPN variants) are not supported."
        )
    m, theta = shapes[guidance][0], shapes[f"{_CONTROLLER}.1.weight"][0]
    classes, hidden = _classes_and_hidden(shapes, facts, options, m=m, theta=theta)
    config = NrdConfig(
        encoder=encoder,
        num_classes=classes,
        head=head,
        controller_channels=shapes[f"{_CONTROLLER}.0.conv.weight"][0],
        hidden=hidden,
        guidance_channels=m,
        patch=options.patch or facts.get("patch", 8),
        dilations=options.dilations or tuple(facts.get("dilations", (1, 3, 6, 9))),
    )
    if head == "nrd":
        return replace(
            config,
            channels=shapes["decode_head.bottleneck.conv.weight"][0],
            c1_channels=shapes[guidance][1],
        )
    conv_seg = shapes.get("decode_head.conv_seg.weight")
    return replace(config, channels=conv_seg[1] if conv_seg else shapes[f"{_CONTROLLER}.0.conv.weight"][1])


def _encoder(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Name the encoder by stem, blocks per stage and groups."""
    if "backbone.conv1.conv.weight" in shapes:
        return "mobilenetv2"
    blocks = tuple(
        len({name.split(".")[2] for name in shapes if name.startswith(f"backbone.layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    grouped = shapes.get("backbone.layer1.0.conv2.weight", (64, 64))
    for name, plan in RESNETS.items():
        if (
            plan.blocks == blocks
            and plan.deep_stem == ("backbone.stem.0.weight" in shapes)
            and plan.bottleneck == ("backbone.layer1.0.conv3.weight" in shapes)
            and plan.groups == grouped[0] // max(grouped[1], 1)
        ):
            return name
    return None


def _classes_and_hidden(
    shapes: Mapping[str, tuple[int, ...]], facts: Mapping[str, Any], options: CheckpointOptions, *, m: int, theta: int
) -> tuple[int, int]:
    """Solve P = (2+m)d + d + d² + d + dK + K for what is not known of K and d."""
    conv_seg = shapes.get("decode_head.conv_seg.weight")
    classes = options.num_classes or (conv_seg[0] if conv_seg else facts.get("num_classes"))
    hidden = options.hidden or facts.get("hidden")
    if classes is None:
        d = hidden or 16
        fixed = d * (4 + m + d)
        classes, rest = divmod(theta - fixed, d + 1)
        hidden = d if rest == 0 and classes >= 2 else None
    elif hidden is None:
        b = 4 + m + classes  # d² + b·d + K = P
        root = math.isqrt(b * b + 4 * (theta - classes)) if theta > classes else 0
        hidden = (root - b) // 2
    if not hidden or hidden < 1 or hidden * (4 + m + hidden + classes) + classes != theta:
        raise CheckpointError(
            f"the controller predicts {theta} parameters per patch with {m} guidance channels, which does not fit "
            f"K = {classes} classes and d = {hidden} hidden channels; give --num-classes and --hidden."
        )
    return int(classes), int(hidden)


def _describe(classes: int, facts: Mapping[str, Any], options: CheckpointOptions) -> ModelInfo:
    """Collect names, colours and preprocessing: option, then file, then the known sets."""
    found = dict(facts.get("info", {}))
    if options.class_names is not None and len(options.class_names) != classes:
        raise ConfigError(f"--classes: expected {classes} names, got {len(options.class_names)}.")
    names: Sequence[str] | None = options.class_names or found.get("class_names")
    palette = found.get("palette")
    if names is not None and len(names) != classes:
        warnings.warn(f"the checkpoint names {len(names)} classes but has {classes}; names ignored", stacklevel=4)
        names = None
    known = known_classes(classes)
    if names is None and known is None:
        warnings.warn(f"no class names for {classes} classes; using class_0 …, give --classes", stacklevel=4)
    names = names or (known[0] if known else [f"class_{index}" for index in range(classes)])
    if palette is None or len(palette) != classes:
        palette = known[1] if known else voc_palette(classes)
    given = {"mean": options.mean, "std": options.std}
    if options.bgr is not None:
        given["channel_order"] = "bgr" if options.bgr else "rgb"  # type: ignore[assignment]
    defaults = ModelInfo(class_names=tuple(names), palette=tuple(map(tuple, palette))).to_dict()
    chosen = {key: value for key, value in given.items() if value is not None}
    return ModelInfo.from_dict({**defaults, **found, "class_names": names, "palette": palette, **chosen})


# --- checking --------------------------------------------------------------------------------------------------------


def _check_tensors(path: Path, state: Mapping[str, Tensor], model: NrdSegmentor) -> None:
    """Raise `CheckpointError` that lists every missing, unexpected, misshapen or non-finite tensor."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    optional = {name for name in expected if name.endswith("num_batches_tracked") or name.startswith(_UNUSED)}
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
        raise CheckpointError(
            f"{path}: read as {model.config.encoder} with head {model.config.head}; {listed}. {_nearest(shapes)}"
        )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _nearest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    name, share = nearest_config(shapes)
    return f"The nearest known configuration is {name} ({share:.0%} of the tensors agree)."
