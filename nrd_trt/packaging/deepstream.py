"""A bundle as what DeepStream's element nvinfer takes: configuration, plan, and code that hands masks on."""

from __future__ import annotations

from pathlib import Path

from nrd_trt.engine.bundle import ONNX_FILE, PLAN_FILE, RECORD_FILE, Bundle
from nrd_trt.engine.plugins import LIBRARY
from nrd_trt.errors import ConfigError
from nrd_trt.files import sha256_file
from nrd_trt.packaging.folders import Folder, render
from nrd_trt.packaging.plan import labels_of, library_of_plan, needs_of_plan
from nrd_trt.runtime.graph_io import graph_specs

_PARSER = "libnvdsinfer_nrd.so"
_TEMPLATES = {
    "config_infer.txt": "deepstream_infer.txt.j2",
    "deepstream_app.txt": "deepstream_app.txt.j2",
    "nrd_mask_parser.cpp": "deepstream_parser.cpp",
    "Makefile": "deepstream_makefile.j2",
    "run.sh": "deepstream_run.sh.j2",
    "README.md": "deepstream_readme.md.j2",
}


def plan_pipeline(
    bundle: Bundle, name: str, output: Path, *, max_batch: int | None, plugin: Path | None
) -> tuple[list[Folder], list[str]]:
    """Return the folder of a pipeline and notes for whoever runs it; nothing is written.

    Args:
        bundle: Opened.
        name: The folder's is this and ``_deepstream``.
        output: Where the folder shall stand.
        max_batch: See `nrd_trt.package`.
        plugin: Library of a plan that decodes by plugin; None searches for it.

    Raises:
        ConfigError: nvinfer cannot run the bundle as it was validated, or an argument does not fit it.
        PluginError: The plan's library is absent or not that of the build.
        BundleError: The bundle does not say which library that was.
    """
    _check(bundle, max_batch)
    has_plan = bundle.plan_path is not None and bundle.record.builder.name == "tensorrt"
    library = library_of_plan(bundle, plugin) if has_plan else None
    shape, model = bundle.graph.shape, PLAN_FILE if has_plan else ONNX_FILE
    notes = _notes(bundle, name, has_plan=has_plan)
    values = {
        "name": name,
        "bundle_sha256": sha256_file(bundle.path / RECORD_FILE),
        "has_plan": has_plan,
        "model": model,
        "plugin": library and LIBRARY,
        "library": _PARSER,
        "batch": max_batch or shape.batch.max,
        "size_hw": shape.opt_hw,
        "fit": bundle.record.fit,
        "classes": len(bundle.graph.info.class_names),
        "notes": notes,
    }
    files: dict[str, bytes | Path] = {file: render(template, **values) for file, template in _TEMPLATES.items()}
    files |= {"labels.txt": labels_of(bundle).replace(b";", b","), model: bundle.path / model}  # nvinfer splits at it
    files |= {} if library is None else {LIBRARY: library}
    return [Folder(path=output / f"{name}_deepstream", files=files)], notes


def _check(bundle: Bundle, max_batch: int | None) -> None:
    """Raise `ConfigError` where nvinfer could not give the network what it reads, or hand on what it gives."""
    graph, precision, batch = bundle.graph, bundle.record.precision, bundle.graph.shape.batch
    again = "nrd_trt.build('CHECKPOINT', 'NAME.nrd', input_form='rgb_float')"
    if graph.input_form != "rgb_float":
        raise ConfigError(
            f"{bundle.path}: expected a bundle that reads planar floats in 0-255, which nvinfer gives, got one with "
            f"the input {graph.input_form}; build it with the input rgb_float: {again}"
        )
    outputs = graph_specs(graph)[1]
    if "mask" not in outputs or graph.mask_encoding != "uint8":
        got = f"masks as {graph.mask_encoding}" if "mask" in outputs else f"the output {', '.join(outputs)}"
        raise ConfigError(f"{bundle.path}: expected a bundle that gives uint8 masks, got one with {got}; {again}")
    if bundle.record.fit == "pad":
        raise ConfigError(
            f"{bundle.path}: expected fit 'resize' or 'letterbox', got 'pad', and nvinfer brings every frame to the "
            "network's size; build it with another fit."
        )
    if precision.target == "cpu":
        raise ConfigError(f"{bundle.path}: expected a bundle for a GPU, got one for a CPU; build it for a GPU.")
    if max_batch is not None and not batch.min <= max_batch <= batch.max:
        raise ConfigError(
            f"max_batch={max_batch}: expected {batch.min} to {batch.max}, what the bundle was built for; build one for "
            "other batches."
        )


def _notes(bundle: Bundle, name: str, *, has_plan: bool) -> list[str]:
    """Return what must match where the pipeline runs, and what differs there from the validation."""
    shape = bundle.graph.shape
    notes = ["The library needs a DeepStream whose nvdsinfer.h knows UINT8; the headers of DeepStream 9.1 do."]
    if has_plan:
        notes.append(f"The plan needs a DeepStream with {needs_of_plan(bundle)}.")
    else:
        notes.append(
            "nvinfer builds the plan from the ONNX file when it starts, with the types of the file (strongly-typed, "
            "of DeepStream 9.1). Nobody has compared that plan's masks: for a checked one, build the bundle on that "
            "machine with builder tensorrt, and package it again."
        )
    if bundle.record.plugin is not None and has_plan:
        notes.append(f"The plan decodes by {bundle.record.plugin.file}, which the library loads when nvinfer opens it.")
    if shape.batch.min > 1:
        notes.append(f"{name} takes {shape.batch.min} frames or more at a time: give nvinfer as many sources.")
    if not (shape.height.is_static and shape.width.is_static):
        notes.append("Of the sizes that the bundle takes, infer-dims names the usual one.")
    notes.append(
        "nvinfer scales frames by the filter of NvBufSurfTransform, without the antialiasing of Pillow: where it makes "
        "frames smaller, masks differ near borders from those of predict."
    )
    if bundle.record.fit == "letterbox":
        notes.append("Padding is black there, and of the mean's colour where the bundle was validated.")
    if len(graph_specs(bundle.graph)[1]) > 1:
        notes.append("nvinfer copies every output to the host; a bundle that gives masks alone spares the others.")
    return notes
