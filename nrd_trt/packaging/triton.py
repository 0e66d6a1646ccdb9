"""A bundle as models of a Triton server: the plan on its TensorRT backend, the bundle on its Python backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nrd_trt.engine.bundle import ONNX_FILE, PLAN_FILE, RECORD_FILE, REFERENCE_FILE, Bundle
from nrd_trt.engine.compat import version_numbers
from nrd_trt.engine.plugins import LIBRARY, REGISTRAR
from nrd_trt.engine.signature import SIGNATURE_FILE
from nrd_trt.errors import ConfigError, PluginError
from nrd_trt.files import sha256_file
from nrd_trt.packaging.folders import Folder, render
from nrd_trt.packaging.plan import labels_of, library_of_plan, needs_of_plan
from nrd_trt.packaging.triton_model import warmup_image
from nrd_trt.runtime.graph_io import graph_specs
from nrd_trt.runtime.select import rebuild_call
from nrd_trt.specs import TensorSpec, format_shape

_FILES = (RECORD_FILE, ONNX_FILE, PLAN_FILE, REFERENCE_FILE, SIGNATURE_FILE)
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
_QUEUE = {"queue_delay_us": 500, "queue_size": 128}
"""How long a request waits for others to share its run, and how many wait at most."""
_MOST_IMAGES = 8
"""Of one run of the Python backend, where the plan was built for fewer."""
_MODEL = b"from nrd_trt.packaging.triton_model import TritonPythonModel as TritonPythonModel\n"


def plan_repository(
    bundle: Bundle, name: str, output: Path, *, max_batch: int | None, plugin: Path | None
) -> tuple[list[Folder], list[str]]:
    """Return the folders of a model repository and notes for whoever runs it; nothing is written.

    Args:
        bundle: Opened.
        name: Name of the plan's model; that of the bundle ends with ``_bundle``.
        output: The repository.
        max_batch: See `nrd_trt.package`.
        plugin: Library of a plan that decodes by plugin; None searches for it.

    Raises:
        ConfigError: `max_batch` is more than the plan takes, or `plugin` is given for a plan that needs none.
        PluginError: The plan's library is absent or not that of the build, or the one that registers itself is not
            beside it.
        BundleError: The bundle does not say which library that was.
    """
    why = _unservable(bundle)
    library = library_of_plan(bundle, plugin) if why is None else None
    notes = _notes(bundle, name, why)
    common = {"name": name, "plugin": None, **_QUEUE, **_facts(bundle)}
    labels = labels_of(bundle)
    files: dict[str, bytes | Path] = {}
    if why is None:
        files = {
            "config.pbtxt": render("triton_plan.pbtxt.j2", **common, **_plan_settings(bundle, max_batch)),
            "labels.txt": labels,
            "1/model.plan": bundle.path / PLAN_FILE,
        }
    of_bundle: dict[str, bytes | Path] = {}
    if library is not None:
        registrar = _registrar(library, bundle)
        files[registrar.name] = registrar
        of_bundle[LIBRARY] = library
        common["plugin"] = registrar.name
    inputs, outputs = graph_specs(bundle.graph)
    common |= {"served": why is None, "notes": notes, "confidence": "confidence" in outputs}
    common |= {"takes": _shown(inputs["image"]), "gives": ", ".join(map(_shown, outputs.values()))}
    of_bundle |= {
        "config.pbtxt": render(
            "triton_bundle.pbtxt.j2",
            **{**common, "plugin": library and LIBRARY},
            max_batch=max_batch or max(bundle.graph.shape.batch.max, _MOST_IMAGES),
            usual_hw=bundle.graph.shape.opt_hw,
        ),
        "labels.txt": labels,
        "README.md": render("triton_readme.md.j2", **common),
        "run.sh": render("triton_run.sh.j2", **common, version_compatible=bundle.record.builder.version_compatible),
        "1/model.py": _MODEL,
        "warmup/image": warmup_image(bundle.graph.shape.opt_hw).tobytes(),
    }
    of_bundle |= {f"1/{name}.nrd/{file}": bundle.path / file for file in _FILES if (bundle.path / file).is_file()}
    folders = [Folder(path=output / name, files=files), Folder(path=output / f"{name}_bundle", files=of_bundle)]
    return folders, notes


def _unservable(bundle: Bundle) -> str | None:
    """Return why Triton's TensorRT backend cannot serve the plan as clients expect it; None where it can."""
    built = bundle.record.builder
    if bundle.plan_path is None:
        return "the bundle holds no plan"
    if built.name != "tensorrt":
        return f"{built.name} {built.version} built the plan, and that backend runs those of TensorRT"
    if bundle.graph.mask_encoding == "u8x4":
        return "its masks hold four pixels in one int32 (u8x4), which only the runners of nrd_trt unpack"
    return None


def _notes(bundle: Bundle, name: str, why: str | None) -> list[str]:
    batch = bundle.graph.shape.batch
    if why is not None:
        if bundle.graph.mask_encoding == "u8x4":
            remedy = "build with mask_encoding='uint8'"
        else:
            there = Path(bundle.path.name)
            remedy = f"build the plan where it is served: {rebuild_call(there, 'tensorrt', bundle.record.decode)}"
        return [f"the model {name} on the TensorRT backend is left out: {why}. For it, {remedy}, and package it again."]
    notes = [f"{name} needs a server with {needs_of_plan(bundle)}."]
    if bundle.record.plugin is not None:
        facts = bundle.record.plugin
        notes.append(
            f"{name} needs the plugin, made for TensorRT {facts.tensorrt} and CUDA {facts.cuda}, loaded before it; "
            "run.sh does."
        )
    if batch.is_static:
        notes.append(
            f"{name} takes {batch.max} image{'s' * (batch.max > 1)} at a time, as its plan does, so the server neither "
            "forms batches for it nor limits its queue; build with a range of batches, such as 1:4:8, for both."
        )
    elif batch.min > 1:
        notes.append(f"{name} refuses runs of fewer than {batch.min} images, as its plan does.")
    if bundle.graph.input_form != "uint8":
        form = "normalised images" if bundle.graph.input_form == "float" else "planes of floats in 0-255"
        notes.append(f"{name} reads {form}; a bundle with uint8 input leaves nothing to get wrong there.")
    return notes


def _registrar(library: Path, bundle: Bundle) -> Path:
    """Return the library that Triton's backend opens, which does no more than that; it lies beside the other one."""
    major = version_numbers(str(bundle.record.builder.version))[0]
    path = library.with_name(REGISTRAR.format(major=major))
    if not path.is_file():
        raise PluginError(
            f"{path}: expected the plugin for programs that only open it, from the build of {library}, got none; "
            "copy it there: the wheel and plugins/build have both."
        )
    return path


def _facts(bundle: Bundle) -> dict[str, Any]:
    """Return what clients can read in the configuration, as texts of its language."""
    names = json.dumps(bundle.graph.info.class_names)  # ASCII, so that a second time escapes it as protobuf does
    return {"class_names": json.dumps(names), "bundle_sha256": sha256_file(bundle.path / RECORD_FILE)}


def _plan_settings(bundle: Bundle, max_batch: int | None) -> dict[str, Any]:
    """Return what the configuration of the plan's model says."""
    graph, shape = bundle.graph, bundle.graph.shape
    batch = shape.batch
    if max_batch is not None and not batch.is_static and max_batch > batch.max:
        raise ConfigError(
            f"max_batch={max_batch}: expected at most {batch.max}, the most that the plan was built for; build one for "
            "larger batches."
        )
    most = 0 if batch.is_static else max_batch or batch.max  # Triton's 0: the first dimension is no batch of its own
    batches = [1] if batch.is_static else sorted({max(1, batch.min), min(batch.opt, most), most})
    inputs, outputs = graph_specs(graph)
    dynamic_size = None in inputs["image"].shape[1:]
    return {
        "max_batch": most,
        "inputs": [_tensor(spec, batched=most > 0) for spec in inputs.values()],
        "outputs": [_tensor(spec, batched=most > 0) for spec in outputs.values()],
        "preferred": [n for n in batches if n > 1],
        "graph_batches": [] if not dynamic_size else batches if most else [0],
        "warmup_batches": batches,
        "usual_dims": graph.image_range[1][1 if most else 0 :],
    }


def _tensor(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    shape = spec.shape[1:] if batched else spec.shape
    return {"name": spec.name, "type": _TYPES[spec.dtype.name], "dims": [-1 if n is None else n for n in shape]}


def _shown(spec: TensorSpec) -> str:
    return f"`{spec.name}` {spec.dtype} {format_shape(spec.shape)}"
