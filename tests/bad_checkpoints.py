"""Files that are no checkpoint: what writes each, by its name. Nothing here asserts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nrd_trt.model.checkpoint import save_checkpoint
from tests.helpers import cached_small_model


def _pickled(content: object) -> Callable[[Path], Any]:
    return lambda path: torch.save(content, path)


def _mmseg(meta: dict[str, Any]) -> Callable[[Path], Any]:
    return lambda path: torch.save({"meta": meta, "state_dict": cached_small_model().state_dict()}, path)


def _described(key: str, value: str) -> Callable[[Path], Any]:
    return lambda path: save_file(dict(cached_small_model().state_dict()), path, {key: value})


def _cut(path: Path) -> None:
    if path.suffix == ".pth":
        torch.save(cached_small_model().state_dict(), path)
    else:
        save_checkpoint(cached_small_model(), path)
    path.write_bytes(path.read_bytes()[:100_000])


BAD_CHECKPOINTS: dict[str, Callable[[Path], Any]] = {
    "missing.pth": lambda path: None,
    "folder.pth": lambda path: path.mkdir(),
    "truncated.pth": _cut,
    "truncated.safetensors": _cut,
    "text.pth": lambda path: path.write_text("no checkpoint\n"),
    "text.safetensors": lambda path: path.write_text("no checkpoint\n"),
    "empty.pth": lambda path: path.write_bytes(b""),
    "empty.safetensors": lambda path: path.write_bytes(b""),
    "list.pth": _pickled([torch.zeros(1)]),
    "numbers.pth": _pickled({"state_dict": {"a": 1}}),
    "nothing.pth": _pickled({}),
    "meta.pth": _mmseg({"CLASSES": 5}),
    "names.pth": _mmseg({"CLASSES": tuple(range(11))}),
    "dataset_meta.pth": _mmseg({"dataset_meta": None}),
    "norm.pth": _mmseg({"config": "img_norm_cfg = dict(mean=[a, 2], std=[1, 1, 1])"}),
    "dilations.pth": _mmseg({"config": "model = dict(decode_head=dict(dilations=(1, 12)))"}),
    "notjson.safetensors": _described("nrd_trt.info", "{"),
    "badinfo.safetensors": _described("nrd_trt.info", '{"mean": "grey"}'),
    "listinfo.safetensors": _described("nrd_trt.info", "[1]"),
    "deepinfo.safetensors": _described("nrd_trt.info", "[" * 100_000),
    "badconfig.safetensors": _described("nrd_trt.config", '{"dilations": 3}'),
    "badpatch.safetensors": _described("nrd_trt.config", '{"patch": 7}'),
}
"""Writers of files that no verb can read, by file name; `CheckpointError` or `ConfigError` names the file."""
