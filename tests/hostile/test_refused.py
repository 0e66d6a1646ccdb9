"""Input of every kind that once ended in an internal error, a hang or a killed process is refused with its name."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from nrd_trt.data.videos import VideoReader
from nrd_trt.engine.bundle import RECORD_FILE, REFERENCE_FILE
from nrd_trt.errors import VideoError
from tests.helpers import cached_small_model
from tests.hostile import loaders, seeds
from tests.hostile.fuzz import attempt
from tests.hostile.loaders import LOADERS
from tests.video.clips import street_frames, write_clip

DEEP = "[" * 900 + "]" * 900


def tensors(change: Callable[[torch.Tensor], object], name: object = "weight") -> bytes:
    """A checkpoint with one more tensor, which is not plain, or of no plain name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nested tensors may change, and quantised ones go
        value = change(torch.ones(4, 4))
    torch.save({"state_dict": {**cached_small_model().state_dict(), name: value}}, target := io.BytesIO())
    return target.getvalue()


def changed_onnx(change: Callable[[onnx.ModelProto], object]) -> bytes:
    change(model := seeds.model_of(seeds.tiny_onnx()))
    return bytes(model.SerializeToString())


def set_property(key: str, value: str) -> bytes:
    def change(model: onnx.ModelProto) -> None:
        (entry,) = (entry for entry in model.metadata_props if entry.key == f"nrd_trt.{key}")
        entry.value = value

    return changed_onnx(change)


def set_type(model: onnx.ModelProto, kind: int) -> None:
    model.graph.input[0].type.tensor_type.elem_type = kind


def changed_record(**changes: object) -> bytes:
    """The tiny bundle's record with other values; `...` leaves one out."""
    record = {**json.loads((seeds.tiny_bundle() / RECORD_FILE).read_bytes()), **changes}
    return json.dumps({name: value for name, value in record.items() if value is not ...}).encode()


def changed_info(**changes: object) -> bytes:
    """The same with other facts of its model."""
    model = json.loads((seeds.tiny_bundle() / RECORD_FILE).read_bytes())["model"]
    return changed_record(model={**model, "info": {**model["info"], **changes}})


def masks(value: int) -> bytes:
    """References whose masks have a class of this number."""
    with np.load(seeds.tiny_bundle() / REFERENCE_FILE) as stored:
        arrays = dict(stored)
    arrays["masks"][0, 0, 0] = value
    np.savez_compressed(target := io.BytesIO(), **arrays)
    return target.getvalue()


def metadata(text: str) -> bytes:
    """A safetensors file whose metadata are this text."""
    return _safetensors({"__metadata__": {"nrd_trt.info": text}})


def _safetensors(header: object) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


CASES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a sparse tensor": ("checkpoint .pth", lambda: tensors(lambda t: t.to_sparse())),
    "a nested tensor": ("checkpoint .pth", lambda: tensors(lambda t: torch.nested.nested_tensor([t, t]))),
    "a meta tensor": ("checkpoint .pth", lambda: tensors(lambda t: t.to("meta"))),
    "a quantised tensor": (
        "checkpoint .pth",
        lambda: tensors(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
    ),
    "a tensor of fp8": ("checkpoint .pth", lambda: tensors(lambda t: t.to(torch.float8_e4m3fn))),
    "a key that is a number": ("checkpoint .pth", lambda: tensors(lambda t: t, 3)),
    "a configuration of many starts": ("mmseg configuration", lambda: b"img_norm_cfg = dict(" * 13_600),
    "a configuration of many lists": ("mmseg configuration", lambda: b"img_norm_cfg = dict(" + b"mean=[" * 45_000),
    "a configuration of many blanks": ("mmseg configuration", lambda: (b"img_norm_cfg" + b" " * 500) * 500),
    "a configuration of many signs": ("mmseg configuration", lambda: b"model = " + b"-" * 100_000 + b"1"),
    "a mean of many signs": ("mmseg configuration", lambda: b"img_norm_cfg = dict(mean=[" + b"-" * 9000 + b"1])"),
    "a configuration of many brackets": ("mmseg configuration", lambda: b"model = " + b"dict(a=" * 90 + b")" * 90),
    "a configuration of many calls": ("mmseg configuration", lambda: b"model = f" + b"()" * 5000),
    "deep metadata of safetensors": ("checkpoint .safetensors", lambda: metadata(DEEP)),
    "a deep record": ("bundle.json", lambda: changed_record(command=json.loads(DEEP))),
    "a record without its files": ("bundle.json", lambda: changed_record(files={})),
    "a record without a palette": ("bundle.json", lambda: changed_record(model=...)),
    "a colour that is none": ("bundle.json", lambda: changed_info(palette=[[300, 0, 0]] * seeds.CLASSES)),
    "a size of gigabytes": ("bundle.json", lambda: changed_info(size_hw=[1 << 20, 1 << 20])),
    "deep facts of an ONNX file": ("ONNX file", lambda: set_property("info", DEEP)),
    "a type that ONNX does not have": ("ONNX file", lambda: changed_onnx(lambda model: set_type(model, 99))),
    "an input of strings": ("ONNX file", lambda: changed_onnx(lambda model: set_type(model, TensorProto.STRING))),
    "no ONNX file in a bundle": ("ONNX file of a bundle", lambda: b"\xff" * 40),
    "masks of a class that is not there": ("reference.npz", lambda: masks(200)),
    "deep ranges": ("ranges", lambda: DEEP.encode()),
    "a deep timing cache": ("timing cache", lambda: DEEP.encode()),
    "a deep tune state": ("tune state", lambda: f'{{"key": "key", "x": {DEEP}}}'.encode()),
}


@pytest.mark.parametrize("name", CASES)
def test_hostile_input_is_refused_or_read_right(name: str) -> None:
    loaders.prepare()
    loader, make = CASES[name]
    content = make()
    for way in LOADERS[loader].ways:
        outcome = attempt(content, way)
        assert not outcome.defect, outcome


PLAYLISTS = {
    "a.ffconcat": "ffconcat version 1.0\nfile clip.mp4\n",
    "a.mp4": "ffconcat version 1.0\nfile clip.mp4\n",
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n",
    "a.mkv": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_file_that_lists_other_files_is_no_video(name: str, tmp_path: Path) -> None:
    for clip in ("clip.mp4", "clip.ts"):
        write_clip(tmp_path / clip, street_frames(3))
        assert len(list(VideoReader(tmp_path / clip))) == 3
    (path := tmp_path / name).write_text(PLAYLISTS[name])
    with pytest.raises(VideoError, match=rf"{name}: expected a video, (got a list of other files|FFmpeg finds none)"):
        VideoReader(path)
