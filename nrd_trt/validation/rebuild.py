"""Whether building a bundle's file again gives the same engine: plans by hash, and masks where the plan runs.

A builder times its candidates for each layer on the device, so two builds may take different ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np

from nrd_trt.data.samples import Sample
from nrd_trt.engine.builder import BuildOptions, build_engine
from nrd_trt.engine.bundle import PLAN_FILE, Bundle
from nrd_trt.engine.compat import ConfigOptions
from nrd_trt.figures import Rebuilds
from nrd_trt.files import sha256_bytes
from nrd_trt.graph.metadata import load_checked
from nrd_trt.machine.cuda import probe_device
from nrd_trt.progress import OnMessage, OnStage, silent
from nrd_trt.runtime.base import Runner
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.select import DEFAULT, RunOptions, bundle_plugin, plan_obstacle, plan_runner, rebuild_call

COMPARED_COUNT = 8
"""Images whose masks are compared between builds."""

_NOT_RUN = "the plans were built and compared; this machine cannot run them"


def rebuild_plans(
    bundle: Bundle,
    count: int,
    samples: Iterable[Sample],
    run: RunOptions = DEFAULT,
    *,
    progress: bool = True,
    on_stage: OnStage = silent,
    on_message: OnMessage = silent,
) -> Rebuilds:
    """Build a bundle's file `count` times as it was built, and compare what comes out.

    Args:
        bundle: Opened; nothing is written to it.
        count: At least 2.
        samples: Every build that can run here draws the first `COMPARED_COUNT`.
        run: How the plans are run, or ONNX Runtime where the bundle has none; plans run wherever they can.
        progress: Show a bar on builds over two seconds.
        on_stage: Receives a line per build.
        on_message: Receives TensorRT's messages.

    Raises:
        MissingDependencyError: The builder is not installed here.
        BuildError: A build failed.
        PluginError: The plan needs a library that cannot be had.
    """
    built, compared = bundle.record.builder, list(islice(samples, COMPARED_COUNT))
    version, plans, types, masks = None, list[str](), list[dict[str, int]](), list[list[np.ndarray]]()
    if built.name == "onnxruntime":
        for index in range(count):
            on_stage(f"session {index + 1} of {count} in ONNX Runtime")
            masks.append(_masks(bundle, OrtRunner(bundle.onnx_path, threads=run.threads), compared))
        note = "the bundle has no plan; each build is a new session of ONNX Runtime on its file"
    else:
        model, device = load_checked(bundle.onnx_path), probe_device()
        options = BuildOptions(
            flavour=built.name,
            config=recorded_config(bundle),
            plugin=bundle_plugin(bundle, run.plugin),
            gpu=device.name if device else None,
            driver=device.driver if device else None,
            progress=progress,
            on_message=on_message,
        )
        rebuild = rebuild_call(bundle.path, options.flavour, bundle.record.decode)
        runs = plan_obstacle(built) is None
        for index in range(count):
            on_stage(f"build {index + 1} of {count} with {options.flavour}")
            engine = build_engine(model, options)
            version = engine.version
            plans.append(sha256_bytes(engine.plan))
            types.append(engine.types_found)
            if runs:
                runner = plan_runner(engine.plan, built, rebuild, run, plugin=options.plugin, graph=bundle.graph)
                masks.append(_masks(bundle, runner, compared))
        note = "every build drew the masks" if runs else _NOT_RUN
    return Rebuilds(
        builder=built.name,
        version=version,
        builds=count,
        plans=tuple(plans),
        same_as_bundle=plans.count(bundle.record.files[PLAN_FILE]) if plans else None,
        types_found=tuple(types),
        images=len(compared) if masks else 0,
        agreement=_smallest_agreement(masks),
        note=note,
        distinct_plans=len(set(plans)),
    )


def recorded_config(bundle: Bundle) -> ConfigOptions:
    """Return the settings that a bundle's plan was built with."""
    built = bundle.record.builder
    return ConfigOptions(
        workspace_mib=built.workspace_mib,
        optimization_level=built.optimization_level,
        version_compatible=built.version_compatible,
        hardware_compatible=built.hardware_compatible,
        tf32=built.tf32 is not False,
        compute_capabilities=built.compute_capabilities if built.name == "tensorrt-rtx" else (),
        builder_options=built.builder_options,
    )


def _masks(bundle: Bundle, runner: Runner, samples: list[Sample]) -> list[np.ndarray]:
    with Engine(runner, bundle.graph) as engine:
        return [engine.mask(sample.image) for sample in samples]


def _smallest_agreement(masks: list[list[np.ndarray]]) -> float | None:
    """Return the smallest share of pixels on which the first build and another agree; None without masks."""
    agreements = [np.mean([(a == b).mean() for a, b in zip(masks[0], other, strict=True)]) for other in masks[1:]]
    return float(min(agreements)) if agreements else None
