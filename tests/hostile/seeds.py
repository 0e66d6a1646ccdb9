"""Honest files, small ones, that mutations start from. Nothing here asserts."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import nrd_trt
from nrd_trt.graph.metadata import GraphFacts, write_facts
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.specs import InputShape
from tests.artefacts import scenes, workspace
from tests.data.pictures import RGB, encoded
from tests.helpers import cached_small_model, model_info

SIZE_HW = (64, 96)
CLASSES = 11
CONFIG = """\
norm_cfg = dict(type='SyncBN', requires_grad=True)
img_norm_cfg = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='MobileNetV2', widen_factor=1.0, strides=(1, 2, 2, 2, 1, 2, 1), norm_cfg=norm_cfg),
    decode_head=dict(type='NRDHead', dilations=(1, 3, 6, 9), loss_decode=[dict(type='CrossEntropyLoss')]))
"""


@cache
def tiny_onnx() -> bytes:
    """A network of five nodes that an engine can be made of."""
    weight = np.random.default_rng(0).normal(size=(CLASSES, 3, 3, 3)).astype(np.float32) / 100
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], "pixels", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weight", "bias"], ["logits"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("ArgMax", ["logits"], ["index"], "index", axis=1, keepdims=0),
        helper.make_node("Cast", ["index"], ["mask"], "mask", to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, (1, *SIZE_HW, 3))],
        [helper.make_tensor_value_info("mask", TensorProto.UINT8, (1, *SIZE_HW))],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.zeros(CLASSES, np.float32), "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    facts = GraphFacts(
        info=model_info(CLASSES),
        decode=None,
        shape=InputShape.static(SIZE_HW),
        input_form="uint8",
        output="mask",
        encoder="mobilenetv2",
        head="bilinear",
        upsample=32,
    )
    write_facts(model, facts)
    return bytes(model.SerializeToString(deterministic=True))


@cache
def tiny_bundle() -> Path:
    """A bundle of it."""
    folder = workspace() / "hostile"
    folder.mkdir()
    (folder / "tiny.onnx").write_bytes(tiny_onnx())
    nrd_trt.build(
        folder / "tiny.onnx", folder / "tiny.nrd", precision="fp32", builder="onnxruntime", threads=1, progress=False
    )
    return folder / "tiny.nrd"


@cache
def drawn_scenes() -> Path:
    """Four images with labels."""
    return scenes(workspace() / "hostile-scenes", 4, labels=True)


@cache
def pth() -> bytes:
    """A checkpoint as mmseg writes it."""
    state = {name: tensor.half() for name, tensor in cached_small_model().state_dict().items()}
    meta = {"config": CONFIG, "CLASSES": [f"class_{i}" for i in range(11)], "PALETTE": [[i, i, i] for i in range(11)]}
    meta |= {"epoch": np.float64(3.5)}
    torch.save({"meta": meta, "state_dict": state}, target := io.BytesIO())
    return target.getvalue()


@cache
def safetensors() -> bytes:
    """A checkpoint as this toolkit writes it."""
    path = workspace() / "hostile.safetensors"
    save_checkpoint(cached_small_model(), path, half=True)
    return path.read_bytes()


@cache
def pictures() -> dict[str, bytes]:
    """An image in every format that is read."""
    grey, image = RGB[..., 0], Image.fromarray(RGB)
    found = {kind: encoded(RGB, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")}
    image.save(target := io.BytesIO(), "TIFF", compression="tiff_lzw")
    found["TIFF lzw"] = target.getvalue()
    found["JPEG progressive"] = encoded(RGB, "JPEG", progressive=True)
    found["PNG palette"] = encoded(RGB, mode="P")
    found["PNG 16"] = encoded(grey.astype(np.uint16) * 257)
    found["WEBP animated"] = _animated(image)
    return found


def _animated(image: Image.Image) -> bytes:
    image.save(target := io.BytesIO(), "WEBP", save_all=True, append_images=[image.rotate(90)])
    return target.getvalue()


@cache
def label(mode: str = "L") -> bytes:
    """An index PNG of all classes."""
    return encoded((np.arange(40 * 56).reshape(40, 56) % CLASSES).astype(np.uint8), mode=mode)


def json_of(record: object) -> bytes:
    """Return a dataclass as JSON."""
    return json.dumps(asdict(record)).encode()  # type: ignore[call-overload]


def model_of(content: bytes) -> onnx.ModelProto:
    """Parse an ONNX file."""
    return onnx.ModelProto.FromString(content)
