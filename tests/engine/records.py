"""A record of a bundle in which every optional field is filled, for tests that need one and no engine."""

from __future__ import annotations

from typing import Any

import msgspec

from nrd_trt.engine.record import BundleRecord

FLIPS = {"pixels": 3, "share": 0.25, "near_tie": 2, "far": 1, "far_share": 0.125}
GRAPH = {
    "info": {
        "class_names": ["Straße", "sky", "car"],
        "palette": [[128, 0, 0], [0, 128, 0], [0, 0, 128]],
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "channel_order": "rgb",
        "ignore_index": 11,
        "size_hw": [32, 64],
    },
    "decode": {"num_classes": 3, "hidden": 16, "guidance_channels": 16, "patch": 8, "upsample": 4},
    "shape": {
        "batch": {"min": 1, "opt": 1, "max": 1},
        "height": {"min": 32, "opt": 32, "max": 32},
        "width": {"min": 64, "opt": 64, "max": 64},
    },
    "input_form": "uint8",
    "output": "mask",
    "encoder": "mobilenetv2",
    "head": "nrd",
    "checkpoint_sha256": "ab",
    "precision": "fp16",
    "upsample": 4,
    "mask_encoding": "u8x4",
}
BUILDER = {
    "name": "tensorrt",
    "version": "10.13.2",
    "compute_capabilities": ["8.6"],
    "os": "linux",
    "machine": "x86_64",
    "gpu": "A10",
    "driver": "570.124.06",
    "cuda": "12.8",
    "version_compatible": False,
    "hardware_compatible": False,
    "workspace_mib": 256,
    "optimization_level": 3,
    "tf32": False,
    "builder_options": {"max_aux_streams": "2"},
}
CONTENT: dict[str, Any] = {
    "format": 1,
    "nrd_trt": "0.2.0",
    "checkpoint": {"name": "city.pth", "sha256": "ab"},
    "calibration_sha256": "cd",
    "plugin": {
        "file": "libnrd_trt_plugin.so",
        "sha256": "ef",
        "version": "0.1.0",
        "tensorrt": "10.13.2",
        "cuda": "12.6",
        "architectures": [86, 87],
        "ptx": [90],
        "kernel_revision": 1,
        "mask_encoding": "u8x4",
    },
    "decode": "plugin",
    "builder": BUILDER,
    "precision": {
        "asked": "fp16",
        "found": {"half": 2},
        "kept_fp32": ["a\tb"],
        "kept_because": {"a\tb": "its range"},
        "int8_layers": ["conv"],
        "layers": [{"name": "a\tb", "kind": "convolution", "type": "half"}],
    },
    "model": GRAPH,
    "fit": "resize",
    "resample": "cv2",
    "parity": {"max_abs": 0.5, "agreement": 1.0, "arithmetic": "simulated", "failures": ["agreement"]},
    "validation": {
        "pixel_agreement": 0.75,
        "miou_between": 0.5,
        "miou_reference": 0.5,
        "miou_engine": 0.5,
        "tie_share": 0.5,
        "per_class_iou": {"sky": 0.5},
        "images": 2,
        "per_class_between": {"sky": 0.5},
        "per_class_reference": {"sky": 0.5},
        "boundary_between": 0.5,
        "boundary_reference": 0.5,
        "boundary_engine": 0.5,
        "per_class_boundary": {"sky": 0.5},
        "boundary_tolerance_px": 2,
        "flips": FLIPS,
        "flip_pairs": [{"reference": "sky", "engine": "car", "pixels": 3, "far": 1}],
        "worst_images": [{"name": "a.png", "index": 0, "pixel_agreement": 0.75, "flips": 3, "far": 1}],
        "runner": "tensorrt",
        "arithmetic": "native",
        "reference": "torch",
        "samples": "2 images",
        "plan_ran": True,
        "checkpoint_matches": True,
        "precision_asked": "fp16",
        "precision_found": {"fp16": 2},
        "gates": {"min_agreement": 0.995, "max_miou_drop": 0.002},
        "failures": ["pixel agreement"],
        "passed": False,
        "localisation": None,
        "rebuilds": None,
    },
    "passed": True,
    "command": "nrd-trt build city.pth -o NAME.nrd --precision fp16 --force",
    "files": {"model.onnx": "01"},
    "exporter": {"revision": 1, "torch": "2.7.0", "onnx": "1.18.0", "onnxscript": "0.5.0"},
}
"""The content of ``bundle.json`` without its own hash."""


def record(**changes: Any) -> BundleRecord:
    """Return the record with changes at its top level."""
    return msgspec.convert({**CONTENT, **changes}, BundleRecord)
