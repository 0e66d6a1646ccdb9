"""The table of what reads strangers' files: honest ones, how they are changed, and the ways in which they are read."""

from __future__ import annotations

import importlib
import io
import json
import pkgutil
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import nrd_trt
from nrd_trt.calibration.cache import load_ranges
from nrd_trt.cli.main import app
from nrd_trt.data.folders import read_label
from nrd_trt.data.images import read_image
from nrd_trt.data.videos import VideoReader
from nrd_trt.engine.bundle import ONNX_FILE, RECORD_FILE, REFERENCE_FILE
from nrd_trt.engine.caches import CacheKey, read_timing_cache, write_timing_cache
from nrd_trt.files import canonical_json, sha256_bytes, sha256_file
from nrd_trt.model import load_model
from nrd_trt.model.recognise import nearest
from nrd_trt.optimization.rungs import Rung, RungState, open_state
from nrd_trt.progress import silent
from nrd_trt.runtime.engine import open_engine
from nrd_trt.training.record import STATE
from nrd_trt.training.train import train
from tests.artefacts import workspace
from tests.hostile import requests, seeds
from tests.hostile.mutations import (
    Mutate,
    change_bytes,
    change_chunks,
    change_json,
    change_near,
    change_onnx,
    change_records,
)
from tests.training.conftest import labelled, tiny
from tests.video.clips import street_frames, write_clip

Read = Callable[[Path, bytes], object]
"""Places content in an empty folder and reads it; what it writes goes to ``out`` there."""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """One reader of files.

    Attributes:
        honest: Files that it reads.
        change: Makes hostile ones of them.
        ways: How the file is read, by the verbs or functions that do.
    """

    honest: Callable[[], list[bytes]]
    change: Mutate
    ways: tuple[Read, ...]


def one_of(*changes: Mutate) -> Mutate:
    """Return a change that is now the one and now the other."""
    return lambda rng, content: rng.choice(changes)(rng, content)


def verb(*arguments: str, name: str) -> Read:
    """Read a file by a verb of the command line."""

    def read(folder: Path, content: bytes) -> None:
        (folder / name).write_bytes(content)
        _run(folder, folder / name, arguments)

    return read


def in_bundle(*arguments: str, name: str) -> Read:
    """Read a file of a bundle by a verb; every hash is right, as that of an attacker's bundle would be."""

    def read(folder: Path, content: bytes) -> None:
        path = shutil.copytree(seeds.tiny_bundle(), folder / "tiny.nrd")
        record = path / RECORD_FILE
        if name == RECORD_FILE:
            record.write_bytes(hashed(content))
        else:
            (path / name).write_bytes(content)
            facts = json.loads(record.read_bytes())
            facts["files"][name] = sha256_file(path / name)
            record.write_bytes(hashed(json.dumps(facts).encode()))
        _run(folder, path, arguments)

    return read


def _run(folder: Path, path: Path, arguments: tuple[str, ...]) -> None:
    places = {"FILE": path, "OUT": folder / "out", "IMAGE": seeds.drawn_scenes() / "images" / "00.png"}
    app([str(places.get(word, word)) for word in arguments])


def hashed(content: bytes) -> bytes:
    """Give a record its own hash, where it is one."""
    try:
        record = json.loads(content)
        record.pop("sha256", None)
        record["sha256"] = sha256_bytes(canonical_json(record))
        return (json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return content


def placed(name: str, read: Callable[[Path], object]) -> Read:
    """Read a file by a function."""

    def place(folder: Path, content: bytes) -> None:
        (folder / name).write_bytes(content)
        read(folder / name)

    return place


def _predict(path: Path) -> None:
    with open_engine(path) as engine:
        mask = engine.predict(np.zeros((*seeds.SIZE_HW, 3), np.uint8))
    if mask.shape != seeds.SIZE_HW or mask.dtype != np.uint8:
        raise AssertionError(f"a mask {mask.dtype} {mask.shape}")


def _image(path: Path) -> None:
    image = read_image(path)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise AssertionError(f"an image {image.dtype} {image.shape}")


def _label(path: Path) -> None:
    label = read_label(path, num_classes=seeds.CLASSES, ignore_index=None)
    if not np.isin(np.unique(label), [*range(seeds.CLASSES), 255]).all():
        raise AssertionError("a label beyond the classes")


def _video(path: Path) -> None:
    with closing(VideoReader(path)) as reader:
        for picture in islice(reader, 60):
            picture.rgb()


def _config(folder: Path, content: bytes) -> None:
    """A checkpoint of one tensor, whose metadata is read before it is refused for that."""
    text = content.decode(errors="replace")
    torch.save({"meta": {"config": text}, "state_dict": {"weight": torch.zeros(1)}}, folder / "c.pth")
    load_model(folder / "c.pth")


@cache
def clips() -> list[bytes]:
    """A clip in every container."""
    found = []
    for name, codec in (("a.mp4", "mpeg4"), ("a.avi", "mjpeg"), ("a.webm", "libvpx"), ("a.mkv", "libx264")):
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        path = write_clip(workspace() / f"hostile-{name}", street_frames(6), codec=codec, pix_fmt=pix_fmt)
        found.append(path.read_bytes())
    return found


@cache
def ranges() -> bytes:
    """Ranges of the tiny network."""
    path = workspace() / "hostile-ranges.json"
    source = seeds.tiny_bundle().parent / "tiny.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that four images are few
        nrd_trt.calibrate(source, seeds.drawn_scenes(), output=path, images=4, progress=False)
    return path.read_bytes()


KEY = CacheKey(builder="tensorrt 10.3.0", gpu="Orin", driver=None)


@cache
def timing_cache() -> bytes:
    path = workspace() / "hostile.cache"
    write_timing_cache(path, KEY, b"timings")
    return path.read_bytes()


def tune_state() -> bytes:
    """A state with one rung."""
    rung = Rung(
        name="int8",
        precision="int8",
        int8_layers=1,
        pixel_agreement=0.99,
        miou_engine=0.5,
        miou_drop=0.01,
        latency_ms=None,
        class_iou=("road", 0.9),
    )
    return seeds.json_of(RungState(key="key", sensitivity={"conv": 0.1}, rungs={"int8": rung}))


SHORT = tiny(steps=1, evaluations=1)


@cache
def training_data() -> Path:
    return labelled(workspace() / "hostile-labelled")


@cache
def training_state() -> bytes:
    """The state of a run of one step."""
    path = workspace() / "hostile-run"
    train(SHORT, training_data(), path, progress=False)
    return (path / STATE).read_bytes()


def _int8(folder: Path, content: bytes) -> None:
    (folder / "r.json").write_bytes(content)
    (folder / "t.onnx").write_bytes(seeds.tiny_onnx())
    words = ("build", "FILE", "-o", "OUT", "--precision", "int8", "--calibration", str(folder / "r.json"))
    _run(folder, folder / "t.onnx", (*words, "--builder", "onnxruntime", "--threads", "1", "-q"))


def _states(rng: random.Random, content: bytes) -> bytes:
    """Change tensors of a checkpoint: names, types, layouts, sizes."""
    data = torch.load(io.BytesIO(content), weights_only=False)  # our own
    state = data["state_dict"]
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(state))
        state[name] = rng.choice(_TENSORS)(state[name])
        if rng.random() < 0.2:
            state[rng.choice((0, "", name + "x", "backbone." + name, None))] = state.pop(name)
    if rng.random() < 0.3:
        data["meta"] = rng.choice(({}, None, [], {"config": 3}, {"CLASSES": "abc"}, {"PALETTE": [[1]]}, {1: 2}))
    torch.save(data, target := io.BytesIO())
    return target.getvalue()


_TENSORS: tuple[Callable[[torch.Tensor], object], ...] = (
    lambda t: t.double(),
    lambda t: t.to(torch.complex64),
    lambda t: t.float().to(torch.float8_e4m3fn),
    lambda t: t.float().to_sparse(),
    lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    lambda t: torch.nested.nested_tensor([t, t]),
    lambda t: t.to("meta"),
    lambda t: t.new_zeros(1).expand(1 << 16, 1 << 14),
    lambda t: t.new_zeros(1).expand(tuple(t.shape) or (1,)),
    lambda t: t.new_full(t.shape, float("nan")) if t.is_floating_point() else t,
    lambda t: t.reshape(-1),
    lambda t: t[:0] if t.ndim else t,
    lambda t: t.reshape(1, *t.shape),
    lambda t: t.numpy(),
    lambda t: t.shape,
    lambda t: 1.5,
    lambda t: {"weight": t},
    lambda t: torch.zeros((1,) * 65).squeeze(0) if t.ndim == 0 else t.flatten()[0],
)


def _run_states(rng: random.Random, content: bytes) -> bytes:
    """Change values of a training state, at any depth."""
    data = torch.load(io.BytesIO(content))
    for _ in range(rng.choice((1, 1, 2))):
        place = data
        while True:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
                break
            place = place[key]
        value = place[key]
        others = (None, -1, 1 << 40, 0.5, "x", [], {}, {"state": {}}, torch.zeros(3))
        place[key] = rng.choice(_TENSORS)(value) if isinstance(value, torch.Tensor) else rng.choice(others)
        if isinstance(place, dict) and rng.random() < 0.2:
            place[rng.choice((0, "", "x", None, 1 << 20))] = place.pop(key)
    torch.save(data, target := io.BytesIO())
    return target.getvalue()


def _resume(folder: Path, content: bytes) -> None:
    (folder / "run").mkdir()
    (folder / "run" / STATE).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, that a state is used in an unusual way
        train(SHORT, training_data(), folder / "run", progress=False, resume=True)


def _metadata(rng: random.Random, content: bytes) -> bytes:
    """Change the header of a safetensors file, or what this toolkit wrote in it."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if rng.random() < 0.6:
        told = header["__metadata__"]
        key = rng.choice(list(told))
        told[key] = change_json(rng, told[key].encode() if told[key].startswith("{") else b'"x"').decode(
            errors="replace"
        )
    else:
        header = json.loads(change_json(rng, json.dumps(header).encode()))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _safe(change: Mutate) -> Mutate:
    """A change that gives up where it makes nothing that can be written."""

    def safe(rng: random.Random, content: bytes) -> bytes:
        try:
            return change(rng, content)
        except (
            ValueError,
            TypeError,
            RuntimeError,
            KeyError,
            IndexError,
            OverflowError,
            RecursionError,
            AttributeError,
        ):
            return change_bytes(rng, content)

    return safe


_IMAGES = ("00.png", "x.jpg")

LOADERS: dict[str, Loader] = {
    "checkpoint .pth": Loader(
        honest=lambda: [seeds.pth()],
        change=_safe(
            one_of(
                _states,
                change_records(change_bytes, "data.pkl"),
                change_records(change_bytes),
                change_near((0, 300), (-60_000, -1)),
            )
        ),
        ways=(placed("c.pth", load_model),),
    ),
    "mmseg configuration": Loader(honest=lambda: [seeds.CONFIG.encode()], change=change_bytes, ways=(_config,)),
    "checkpoint .safetensors": Loader(
        honest=lambda: [seeds.safetensors()],
        change=_safe(one_of(_metadata, change_near((0, 4000)))),
        ways=(placed("c.safetensors", load_model),),
    ),
    "ONNX file": Loader(
        honest=lambda: [seeds.tiny_onnx()],
        change=_safe(change_onnx),
        ways=(
            verb("inspect", "FILE", "-v", name="t.onnx"),
            verb("inspect", "FILE", "--layers", "--json", "-v", name="t.onnx"),
            placed("t.onnx", _predict),
            verb("build", "FILE", "-o", "OUT", "--precision", "fp32", "--builder", "onnxruntime", "-v", name="t.onnx"),
        ),
    ),
    "ONNX file of a bundle": Loader(
        honest=lambda: [seeds.tiny_onnx()],
        change=_safe(change_onnx),
        ways=(
            in_bundle("predict", "FILE", "IMAGE", "-o", "OUT", "-v", name=ONNX_FILE),
            in_bundle("validate", "FILE", "-v", name=ONNX_FILE),
        ),
    ),
    "bundle.json": Loader(
        honest=lambda: [(seeds.tiny_bundle() / RECORD_FILE).read_bytes()],
        change=_safe(change_json),
        ways=(
            in_bundle("inspect", "FILE", "-v", name=RECORD_FILE),
            in_bundle("inspect", "FILE", "--json", "-v", name=RECORD_FILE),
            in_bundle("predict", "FILE", "IMAGE", "-o", "OUT", "--overlay", "-v", name=RECORD_FILE),
            in_bundle("validate", "FILE", "-v", name=RECORD_FILE),
        ),
    ),
    "reference.npz": Loader(
        honest=lambda: [(seeds.tiny_bundle() / REFERENCE_FILE).read_bytes()],
        change=_safe(one_of(change_records(change_near((0, 160))), change_records(change_bytes), change_bytes)),
        ways=(
            in_bundle("validate", "FILE", "-v", name=REFERENCE_FILE),
            in_bundle("build", "FILE", "-o", "OUT", "--builder", "onnxruntime", "-v", name=REFERENCE_FILE),
        ),
    ),
    "ranges": Loader(honest=lambda: [ranges()], change=_safe(change_json), ways=(placed("r.json", load_ranges), _int8)),
    "timing cache": Loader(
        honest=lambda: [timing_cache()],
        change=change_bytes,
        ways=(placed("t.cache", lambda path: read_timing_cache(path, KEY, silent)),),
    ),
    "tune state": Loader(
        honest=lambda: [tune_state()],
        change=_safe(change_json),
        ways=(placed("s.json", lambda path: open_state(path, "key", resume=True)),),
    ),
    "training state": Loader(
        honest=lambda: [training_state()],
        change=_safe(
            one_of(_run_states, _run_states, change_records(change_bytes, "data.pkl"), change_near((-60_000, -1)))
        ),
        ways=(_resume,),
    ),
    "image": Loader(
        honest=lambda: list(seeds.pictures().values()),
        change=lambda rng, content: _picture(rng, content),
        ways=(placed("photo.png", _image),),
    ),
    "label": Loader(
        honest=lambda: [seeds.label(), seeds.label("P")],
        change=_safe(one_of(change_chunks, change_bytes)),
        ways=(placed("label.png", _label),),
    ),
    "requests, twenty a case": Loader(honest=requests.honest, change=requests.change, ways=(requests.read,)),
    "video": Loader(
        honest=clips, change=one_of(change_bytes, change_near((0, 600), (-900, -1))), ways=(placed("v", _video),)
    ),
}


def _picture(rng: random.Random, content: bytes) -> bytes:
    if content.startswith(b"\x89PNG") and rng.random() < 0.7:
        return _safe(change_chunks)(rng, content)
    return one_of(change_bytes, change_near((0, 200)), change_near((-400, -1)))(rng, content)


@cache
def prepare() -> None:
    """Make what the cases need, in the process that they are forked from."""
    for module in pkgutil.walk_packages(nrd_trt.__path__, "nrd_trt."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("onnxruntime")
    nearest({})  # which remembers the shapes of every known network
    seeds.tiny_bundle()
    seeds.drawn_scenes()
    for loader in LOADERS.values():
        loader.honest()


def cases(name: str, seed: int) -> Iterator[tuple[bytes, Read]]:
    """Yield hostile files of a loader and how each is read, without end; equal seeds give equal ones."""
    prepare()
    loader, rng = LOADERS[name], random.Random(f"{name} {seed}")
    honest = loader.honest()
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some kinds of tensors may change
            content = loader.change(rng, rng.choice(honest))
        yield content, rng.choice(loader.ways)
