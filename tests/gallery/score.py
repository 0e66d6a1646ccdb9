"""Plants the faults of the gallery, validates what comes of them, and scores it; writes the table of the documentation.

python -m tests.gallery.score docs/fault-gallery.md
"""

from __future__ import annotations

import copy
import hashlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import nrd_trt
from nrd_trt.data import synthetic
from nrd_trt.data.overlay import write_rgb
from nrd_trt.data.samples import SampleSource
from nrd_trt.engine.bundle import ONNX_FILE, read_bundle
from nrd_trt.errors import NrdTrtError
from nrd_trt.graph.tensors import copy_model
from nrd_trt.model import load_model, load_trained
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.network import Segmentor
from nrd_trt.model.program import network_program
from nrd_trt.model.stages import predict_stages
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.torch_runner import TorchRunner
from nrd_trt.specs import QUANTIZED, Precision
from nrd_trt.validation.rederive import rederive_full
from nrd_trt.validation.validate import Validation, validate
from nrd_trt.zoo import checkpoint_path
from tests.artefacts import build, checkpoint, plant
from tests.gallery.table import FAULTS, Case, Fault
from tests.gallery.upstream import Planter, everywhere
from tests.helpers import made_once

_PHOTO_HW = (50, 70)
_SCENES = range(500, 504)
"""Streets that the effect of a fault is measured on, besides those of validation."""
_LOUDER = 2.0**16


@dataclass(frozen=True, kw_only=True)
class Score:
    """What became of a fault in one precision.

    Attributes:
        fault: Name.
        precision: Of the file.
        flipped: Share of the pixels that differ from the sound bundle's, 0-1; None where nothing could be drawn.
        rounding: Share of the pixels in which the sound bundle differs from PyTorch in fp32.
        by_numbers: What the figures caught, in words; empty where it passed.
        by_structure: What the structural proof caught; empty where it passed.
        stage: The first stage beyond its tolerance.
        causes: What was said of the cause.
    """

    fault: str
    precision: Precision
    flipped: float | None
    rounding: float
    by_numbers: tuple[str, ...]
    by_structure: tuple[str, ...]
    stage: str | None
    causes: tuple[str, ...]

    @property
    def exceeds(self) -> bool:
        """Whether the fault changes masks by more than rounding does."""
        return self.flipped is None or self.flipped > self.rounding

    @property
    def caught(self) -> bool:
        """Whether validation fails."""
        return bool(self.by_numbers or self.by_structure)

    @property
    def false_causes(self) -> tuple[str, ...]:
        """What was said of the cause and is not true."""
        allowed = (r"^structure: \d+ more differences$", *FAULTS[self.fault].causes)
        return tuple(cause for cause in self.causes if not any(re.search(known, cause) for known in allowed))


@contextmanager
def remembered() -> Iterator[None]:
    """Do once what is slow and where no fault is planted: scenes, checkpoints and sessions of equal files."""
    models: dict[str, Segmentor] = {}

    def loaded(*given: object) -> Segmentor:
        key = repr(given)
        models[key] = models[key] if key in models else load_trained(*given)  # type: ignore[arg-type]
        return models[key]

    @lru_cache(maxsize=8)
    def session(file: bytes, threads: int, level: Any, disabled: tuple[str, ...]) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads, options.graph_optimization_level = 3, threads, level
        return made(file, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled))

    made = onnxruntime.InferenceSession
    with pytest.MonkeyPatch.context() as patch:
        everywhere(patch, synthetic.street_scene, cache(synthetic.street_scene))
        everywhere(patch, load_trained, loaded)
        patch.setattr(
            onnxruntime,
            "InferenceSession",
            lambda file, options, disabled_optimizers=None, **_: session(
                file, options.intra_op_num_threads, options.graph_optimization_level, tuple(disabled_optimizers or ())
            ),
        )
        yield


@contextmanager
def derived_once() -> Iterator[None]:
    """Derive the sound side of equal files once: where the fault is in a file, nothing that derives it is faulty."""
    with pytest.MonkeyPatch.context() as patch:
        for function in (rederive_full, network_program, predict_stages):
            everywhere(patch, function, _keyed(function))
        yield


_derived: dict[str, Any] = {}


def _keyed(function: Callable[..., Any]) -> Callable[..., Any]:
    def once(model: Segmentor, *given: Any) -> Any:
        arrays = [
            hashlib.sha256(value).hexdigest() if isinstance(value, np.ndarray) else repr(value) for value in given
        ]
        key = f"{function.__name__} {id(model)} {arrays}"
        if key not in _derived:
            _derived[key] = function(model, *given)
        return copy.copy(_derived[key]) if isinstance(_derived[key], dict) else copy_model(_derived[key])

    return once


# --- what faults are planted in ---------------------------------------------------------------------------------------


def checkpoint_of(case: Case) -> Path:
    """Return the checkpoint of a case."""
    if case.network == "mobilenetv2":
        return checkpoint()
    quiet = checkpoint_path("nrd_r18_camvid")
    return quiet if case.network == "r18" else made_once("loud.safetensors", lambda path: _make_louder(quiet, path))


def _make_louder(source: Path, target: Path) -> None:
    model = copy.deepcopy(load_model(source))  # which may be remembered
    with torch.no_grad():
        model.get_parameter("backbone.layer1.0.bn1.weight").mul_(_LOUDER)
        model.get_parameter("backbone.layer1.0.bn1.bias").mul_(_LOUDER)
        model.get_parameter("backbone.layer1.0.conv2.weight").div_(_LOUDER)
    save_checkpoint(model, target)


def build_case(case: Case, precision: Precision, target: Path) -> Path:
    """Build a bundle of a case from its checkpoint."""
    calibration = {"calibration": "synthetic", "images": 16} if precision in QUANTIZED else {}
    form = {"size": case.size_of(precision), "input_form": case.input_form, "mask_encoding": case.mask_encoding}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build(checkpoint_of(case), target, precision=precision, **form, **calibration)
    return target


def sound_bundle(case: Case, precision: Precision) -> Path:
    """Return the sound bundle of a case."""
    plain = replace(case, photos=False, bright=False)
    name = hashlib.sha256(repr((plain, precision)).encode()).hexdigest()[:12]
    return made_once(f"sound-{name}.nrd", lambda path: build_case(case, precision, path))


@cache
def images_of(case: Case, precision: Precision) -> list[np.ndarray]:
    """Return the images that the effect of a fault is measured on: those of validation, and as many others."""
    if case.photos:
        return [synthetic.street_scene(seed, _PHOTO_HW).image for seed in (*range(4), *_SCENES)]
    graph = read_bundle(sound_bundle(case, precision)).graph
    drawn = [sample.image for sample in SampleSource(data=None, labels=None, shape=graph.shape, info=graph.info)]
    images = [*drawn, *(synthetic.street_scene(seed, graph.shape.opt_hw).image for seed in _SCENES)]
    if case.bright:
        images = [np.minimum(image.astype(np.uint16) * 3, 255).astype(np.uint8) for image in images]
    return images


def _photos() -> Path:
    def make(folder: Path) -> None:
        folder.mkdir()
        for seed in range(4):
            write_rgb(folder / f"{seed}.png", synthetic.street_scene(seed, _PHOTO_HW).image)

    return made_once("gallery_photos", make)


@cache
def right_masks(case: Case, precision: Precision) -> list[np.ndarray]:
    """Return PyTorch's masks in fp32, at the size of the precision."""
    graph = replace(read_bundle(sound_bundle(case, precision)).graph, input_form="uint8")
    with Engine(TorchRunner(load_model(checkpoint_of(case))), graph) as engine:
        return [engine.predict(image) for image in images_of(case, precision)]


@cache
def sound_masks(case: Case, precision: Precision) -> list[np.ndarray]:
    """Return the masks of the sound bundle."""
    return _masks(sound_bundle(case, precision), case, precision)


def _masks(bundle: Path, case: Case, precision: Precision) -> list[np.ndarray]:
    with nrd_trt.open_bundle(bundle, runner="onnxruntime", threads=1) as engine:
        return [engine.predict(image) for image in images_of(case, precision)]


def _flipped(masks: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    return float(np.mean([np.mean(one != other) for one, other in zip(masks, others, strict=True)]))


# --- planting and scoring ---------------------------------------------------------------------------------------------


@contextmanager
def planted(fault: Fault, precision: Precision) -> Iterator[Callable[[], Path]]:
    """Yield what makes the faulty bundle; a fault upstream lasts as long as the block.

    The sound side is made before, where no fault can reach it.
    """
    sound = sound_bundle(fault.case, precision)
    right_masks(fault.case, precision), sound_masks(fault.case, precision)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        target = Path(folder) / "faulty.nrd"
        if fault.where == "file":
            with derived_once():
                yield lambda: plant(sound, target, fault.plant)  # type: ignore[arg-type]
            assert _differ(sound, target), f"{fault.name} changes nothing in {precision}"
        else:
            planter = Planter(patch)
            fault.plant(planter)  # type: ignore[arg-type]
            yield lambda: build_case(fault.case, precision, target)
            assert planter.calls, f"{fault.name} patches nothing that {precision} calls"


def _differ(first: Path, second: Path) -> bool:
    return onnx.load(first / ONNX_FILE) != onnx.load(second / ONNX_FILE)


def score(fault: Fault, precision: Precision) -> Score:
    """Plant a fault and validate what comes of it, with all that validation has."""
    flipped, found, refused = None, None, ()
    with planted(fault, precision) as make:
        try:
            bundle = make()
            found = validated(bundle, fault.case)
            flipped = _flipped(_masks(bundle, fault.case, precision), sound_masks(fault.case, precision))
        except NrdTrtError as exc:
            refused = (f"refused: {exc}",)
    by_structure = _structural(found)
    localisation = found.localisation if found else None
    return Score(
        fault=fault.name,
        precision=precision,
        flipped=flipped,
        rounding=_flipped(right_masks(fault.case, precision), sound_masks(fault.case, precision)),
        by_numbers=refused or tuple(line for line in found.failures if line not in by_structure),
        by_structure=refused or by_structure,
        stage=localisation.first_beyond if localisation else None,
        causes=(*(localisation.hints if localisation else ()), *by_structure),
    )


def validated(bundle: Path, case: Case, data: Path | None = None) -> Validation:
    """Validate against the checkpoint, on drawn scenes, or on photos where the case has them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return validate(
            bundle,
            checkpoint=checkpoint_of(case),
            data=_photos() if case.photos else data,
            localise=True,
            threads=1,
            progress=False,
        )


def sound_failures(case: Case, precision: Precision, seed: int) -> tuple[str, ...]:
    """Return what validation holds against a sound bundle on four streets; seed 0 stands for validation's own."""
    bundle = sound_bundle(case, precision)
    if not seed:
        return validated(bundle, case).failures
    streets = np.random.default_rng(seed).integers(1_000, 10_000, 4).tolist()
    with tempfile.TemporaryDirectory() as folder:
        for street in streets:
            image = synthetic.street_scene(street, case.size_of(precision)).image
            write_rgb(Path(folder, f"{street}.png"), image)
        return validated(bundle, case, Path(folder)).failures


def _structural(found: Validation | None) -> tuple[str, ...]:
    return tuple(line for line in found.failures if line.startswith("structure: ")) if found else ()
