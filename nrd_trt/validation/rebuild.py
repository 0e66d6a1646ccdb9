"""Whether building a bundle's file again gives the same engine: plans by hash, and masks where the plan runs.

A builder times its candidates for each layer on the device, so two builds may take different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np
import onnx

from nrd_trt.engine.builder import BuildOptions, build_engine
from nrd_trt.engine.bundle import PLAN_FILE, Bundle
from nrd_trt.engine.compat import ConfigOptions
from nrd_trt.files import sha256_bytes
from nrd_trt.machine.cuda import probe_device
from nrd_trt.runtime.base import BaseRunner
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.select import bundle_plugin, can_run_plan, plan_runner, rebuild_call
from nrd_trt.specs import Flavour
from nrd_trt.validation.compare import Sample

COMPARED_COUNT = 8
"""Images whose masks are compared between builds."""


@dataclass(frozen=True, kw_only=True)
class Rebuilds:
    """How alike several builds of one file are.

    Attributes:
        builder: What built them; for ``"onnxruntime"`` a build is a session and there is no plan.
        version: Of the builder.
        builds: How many.
        plans: SHA-256 of each plan; empty without plans.
        same_as_bundle: How many of the plans are the bundle's, byte for byte; None without plans.
        types_found: Layers by type of each build; empty without plans.
        images: How many images the masks were drawn of; 0 where the plans cannot run here.
        agreement: Smallest share of equal pixels between the first build and another; None likewise.
        note: What was and was not run, for people.
    """

    builder: str
    version: str | None
    builds: int
    plans: tuple[str, ...]
    same_as_bundle: int | None
    types_found: tuple[dict[str, int], ...]
    images: int
    agreement: float | None
    note: str

    @property
    def distinct(self) -> int:
        """Number of different plans."""
        return len(set(self.plans))

    def failure(self, min_agreement: float) -> str | None:
        """One line where two builds draw different masks, or do not have the same types."""
        if self.agreement is not None and not self.agreement >= min_agreement:
            return f"builds of one file agree on {self.agreement:.6f} of the pixels, at least {min_agreement} needed"
        if any(found != self.types_found[0] for found in self.types_found):
            return "builds of one file have layers of different types"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)} | {
            "plans": list(self.plans),
            "types_found": list(self.types_found),
            "distinct_plans": self.distinct,
        }


def rebuild_plans(
    bundle: Bundle,
    count: int,
    samples: Iterable[Sample],
    *,
    plugin: Any = None,
    threads: int | None = None,
    progress: bool = True,
    on_stage: Callable[[str], None] = lambda text: None,
    on_message: Callable[[str, str], None] = lambda severity, text: None,
) -> Rebuilds:
    """Build a bundle's file `count` times as it was built, and compare what comes out.

    Args:
        bundle: Opened; nothing is written to it.
        count: At least 2.
        samples: The first `COMPARED_COUNT` are drawn by every build that can run here.
        plugin: Library of a plan that needs one; None looks for it.
        threads: CPU threads of ONNX Runtime.
        progress: Show a bar on builds over two seconds.
        on_stage: Receives a line per build.
        on_message: Receives TensorRT's messages.

    Raises:
        MissingDependencyError: The builder is not installed here.
        BuildError: A build failed.
        PluginError: The plan needs a library that cannot be had.
    """
    built = bundle.record.builder
    compared = list(islice(samples, COMPARED_COUNT))
    if built.name == "onnxruntime":
        sessions = []
        for index in range(count):
            on_stage(f"session {index + 1} of {count} in ONNX Runtime")
            sessions.append(_masks(bundle, OrtRunner(bundle.onnx_path, threads=threads), compared))
        note = "the bundle has no plan; each build is a new session of ONNX Runtime on its file"
        return _result(bundle, count, sessions, len(compared), note)
    options = _options(bundle, built.name, plugin, progress, on_message)
    model, runs = onnx.load(bundle.onnx_path), can_run_plan(built)
    plans, types, masks = [], [], []
    version = None
    for index in range(count):
        on_stage(f"build {index + 1} of {count} with {options.flavour}")
        engine = build_engine(model, options)
        version = engine.version
        plans.append(sha256_bytes(engine.plan))
        types.append(engine.types_found)
        if runs:
            rebuild = rebuild_call(bundle.path, options.flavour, bundle.record.decode)
            encoding = bundle.graph.mask_encoding
            runner = plan_runner(engine.plan, built, rebuild, plugin=options.plugin, mask_encoding=encoding)
            masks.append(_masks(bundle, runner, compared))
    note = "every build drew the masks" if runs else "the plans were built and compared; this machine cannot run them"
    return _result(bundle, count, masks, len(compared) if runs else 0, note, plans, types, version)


def recorded_config(bundle: Bundle) -> ConfigOptions:
    """Return the settings that a bundle's plan was built with."""
    built = bundle.record.builder
    return ConfigOptions(
        workspace_mib=built.workspace_mib,
        optimization_level=built.optimization_level,
        version_compatible=built.version_compatible,
        hardware_compatible=built.hardware_compatible,
        compute_capabilities=built.compute_capabilities if built.name == "tensorrt-rtx" else (),
    )


def _options(
    bundle: Bundle, flavour: Flavour, plugin: Any, progress: bool, on_message: Callable[[str, str], None]
) -> BuildOptions:
    device = probe_device()
    return BuildOptions(
        flavour=flavour,
        config=recorded_config(bundle),
        plugin=bundle_plugin(bundle, plugin),
        gpu=device.name if device else None,
        driver=device.driver if device else None,
        progress=progress,
        on_message=on_message,
    )


def _masks(bundle: Bundle, runner: BaseRunner, samples: list[Sample]) -> list[np.ndarray]:
    with Engine(runner, bundle.graph) as engine:
        return [engine.mask(sample.image).copy() for sample in samples]


def _result(
    bundle: Bundle,
    count: int,
    masks: list[list[np.ndarray]],
    images: int,
    note: str,
    plans: list[str] | None = None,
    types: list[dict[str, int]] | None = None,
    version: str | None = None,
) -> Rebuilds:
    agreements = [
        float(np.mean([(first == mask).mean() for first, mask in zip(masks[0], other, strict=True)]))
        for other in masks[1:]
    ]
    recorded = bundle.record.files.get(PLAN_FILE)
    return Rebuilds(
        builder=bundle.record.builder.name,
        version=version,
        builds=count,
        plans=tuple(plans or ()),
        same_as_bundle=sum(plan == recorded for plan in plans) if plans else None,
        types_found=tuple(types or ()),
        images=images,
        agreement=min(agreements) if agreements else None,
        note=note,
    )
