"""What the scripts are told by the environment, since Polygraphy calls them without arguments; and its way to fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import get_args

import onnx
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

from nrd_trt.data.preprocessing import FITS
from nrd_trt.engine.bundle import is_bundle, read_bundle
from nrd_trt.errors import ConfigError, NrdTrtError
from nrd_trt.graph.metadata import GraphFacts, read_facts
from nrd_trt.specs import PRECISIONS, Fit, Precision, Resample

PREFIX = "NRD_POLYGRAPHY_"


def _path(name: str, text: str) -> Path:
    if not text:
        raise ConfigError(f"{name}: expected a path, got an empty value; unset it or name the file.")
    return Path(text)


def _one_of(*allowed: str) -> Callable[[str, str], str]:
    def parse(name: str, text: str) -> str:
        if text not in allowed:
            raise ConfigError(f"{name} {text!r}: expected one of {', '.join(allowed)}.")
        return text

    return parse


def _count(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{name} {text!r}: expected a number of images, at least 1.")
    return int(text)


def _fraction(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} {text!r}: expected a fraction in 0-1, e.g. 0.995 for 99.5 %.")
    return value


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The variables ``NRD_POLYGRAPHY_…`` of the same names in capitals; None where one is not set.

    Attributes:
        model: ONNX file, bundle, or plan in a bundle: form, sizes, preprocessing and precision are its own.
        data: Folder of images; None for procedural scenes.
        fit: How images are brought to the engine's size; None is the bundle's way, or ``"resize"``.
        resample: What scales them; None is the bundle's way, or ``"pillow"``.
        count: At most so many images.
        precision: Whose default gates hold; None is the model's, or fp32.
        min_agreement: Gate on the share of pixels with the same class, 0-1.
        min_miou: Gate on the mIoU of one mask against the other, 0-1.
        max_clear_flips: Gate on the share of pixels that differ and are not near a tie, 0-1.
    """

    model: Path | None = field(default=None, metadata={"parse": _path})
    data: Path | None = field(default=None, metadata={"parse": _path})
    fit: Fit | None = field(default=None, metadata={"parse": _one_of(*FITS)})
    resample: Resample | None = field(default=None, metadata={"parse": _one_of(*get_args(Resample))})
    count: int | None = field(default=None, metadata={"parse": _count})
    precision: Precision | None = field(default=None, metadata={"parse": _one_of(*PRECISIONS)})
    min_agreement: float | None = field(default=None, metadata={"parse": _fraction})
    min_miou: float | None = field(default=None, metadata={"parse": _fraction})
    max_clear_flips: float | None = field(default=None, metadata={"parse": _fraction})

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read them.

        Raises:
            ConfigError: A variable with the prefix is not known, or a value has another form.
        """
        parsers = {PREFIX + entry.name.upper(): entry.metadata["parse"] for entry in fields(cls)}
        given = {name: text for name, text in environment.items() if name.startswith(PREFIX)}
        if unknown := sorted(given.keys() - parsers.keys()):
            raise ConfigError(f"{', '.join(unknown)}: expected one of {', '.join(parsers)}; unset or correct it.")
        return cls(**{name.removeprefix(PREFIX).lower(): parsers[name](name, text) for name, text in given.items()})


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a model says about itself.

    Attributes:
        graph: Facts of its ONNX file.
        fit: How a bundle's images are brought to the engine's size.
        resample: What scales them.
    """

    graph: GraphFacts
    fit: Fit
    resample: Resample


@cache
def read_model(path: Path) -> ModelFacts:
    """Read the facts of an ONNX file, of a bundle, or of the bundle that a file lies in.

    Raises:
        ConfigError: There is no such file, or it is none of these.
        BundleError: The bundle is damaged.
        ExportError: The ONNX file was not exported by this toolkit.
    """
    if folder := next((folder for folder in (path, path.parent) if is_bundle(folder)), None):
        bundle = read_bundle(folder)
        return ModelFacts(graph=bundle.graph, fit=bundle.record.fit, resample=bundle.record.resample)
    if path.suffix != ".onnx" or not path.is_file():
        found = "no such file" if not path.exists() else "another file"
        raise ConfigError(
            f"{path}: expected an ONNX file of this toolkit, a bundle, or a file in a bundle; got {found}."
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as exc:  # protobuf's errors have no common base
        raise ConfigError(f"{path}: expected an ONNX file, cannot read it ({exc}); export it again.") from exc
    return ModelFacts(graph=read_facts(model), fit="resize", resample="pillow")


@contextmanager
def reported() -> Iterator[None]:
    """Turn our errors into Polygraphy's, which it prints without a traceback before it exits with 1."""
    try:
        yield
    except NrdTrtError as exc:
        G_LOGGER.error(f"nrd_trt: {exc}")
        raise PolygraphyException(str(exc)) from exc
