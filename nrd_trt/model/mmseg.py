"""What mmseg writes into a checkpoint's ``meta``: classes, palette, and the configuration as Python text."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from nrd_trt.model.encoders import MOBILENET_LAYERS, RESNET_STAGES
from nrd_trt.model.recognise import StoredFacts
from nrd_trt.specs import STRIDE

# Per kind of encoder: the stride before its stages, and per output stride their strides and dilations.
_RESNET, _MOBILENET = (4, RESNET_STAGES), (2, MOBILENET_LAYERS)
_MOST_STAGES, _LONGEST_FORM = 16, 300  # of a message about what no known encoder has
_FORM = ("strides", "dilations", "contract_dilation", "style", "multi_grid")


def mmseg_facts(meta: Mapping[str, Any]) -> StoredFacts:
    """Read classes, palette, normalisation, output stride and dilations, as far as they are there.

    Where the encoder's convolutions are strided or dilated in a way that this toolkit does not build, ``unsupported``
    says so in place of the output stride.

    Raises:
        msgspec.ValidationError: A value has another type than mmseg writes.
    """
    told = meta.get("config", "")
    text = told if isinstance(told, str) else ""
    names = meta.get("CLASSES") or meta.get("dataset_meta", {}).get("classes")
    palette = meta.get("PALETTE") or meta.get("dataset_meta", {}).get("palette") or ()
    colours = [list(map(int, colour)) for colour in palette]
    info = {"class_names": list(names or ()) or None, "palette": colours or None, **_normalisation(text)}
    return msgspec.convert({"info": info, **_dilation(_model(text))}, StoredFacts)


def _normalisation(text: str) -> dict[str, Any]:
    # No expression here looks at a character twice: each ends where the next could begin.
    config = re.search(r"img_norm_cfg\s*=\s*dict\(([^()]*)", text)
    given = config[1] if config else ""
    lists = {key: re.search(rf"{key}=\[([^\[\]]*)\]", given) for key in ("mean", "std")}
    info: dict[str, Any] = {
        key: [float(number) for number in found[1].split(",") if number.strip()]
        for key, found in lists.items()
        if found
    }
    if found := re.search(r"to_rgb=(True|False)", given):
        info["channel_order"] = "rgb" if found[1] == "True" else "bgr"
    return info


def _model(text: str) -> dict[str, Any]:
    """Return the plain values of ``model = dict(...)``, by nested keyword; empty where the text has none."""
    try:
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign) and _is_name(statement.targets[0], "model"):
                value = _plain(statement.value)
                return value if isinstance(value, dict) else {}
    except (MemoryError, RecursionError) as exc:  # Python's parser says either
        raise ValueError("a configuration that is nested far deeper than mmseg's") from exc
    except (SyntaxError, ValueError):
        pass
    return {}


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _plain(node: ast.expr) -> Any:
    """Evaluate ``dict(...)`` calls and literals; None for anything else."""
    if isinstance(node, ast.Call) and _is_name(node.func, "dict"):
        return {keyword.arg: _plain(keyword.value) for keyword in node.keywords}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def _dilation(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``dilations`` of ASPP and ``output_stride`` of the encoder, where the configuration tells."""
    facts: dict[str, Any] = {}
    head, encoder = model.get("decode_head"), model.get("backbone")
    if isinstance(head, dict) and isinstance(head.get("dilations"), tuple | list):
        facts["dilations"] = tuple(head["dilations"])
    kind = str(encoder.get("type", "")) if isinstance(encoder, dict) else ""
    family = _MOBILENET if kind == "MobileNetV2" else _RESNET if kind.startswith("ResNe") else None
    if not isinstance(encoder, dict) or family is None:
        return facts
    stem, known = family
    strides, dilations = (
        tuple(encoder.get(name, own)) for name, own in zip(("strides", "dilations"), known[STRIDE], strict=True)
    )
    output_stride = stem * math.prod(strides[:_MOST_STAGES])
    contracted = family is _MOBILENET or output_stride == STRIDE or encoder.get("contract_dilation") is True
    # Neither shows in the tensors: strides on the 1x1 convolutions, and dilations that differ from block to block.
    plain = encoder.get("style", "pytorch") == "pytorch" and encoder.get("multi_grid") is None
    if output_stride in known and known[output_stride][1] == dilations and contracted and plain:
        return {**facts, "output_stride": output_stride}
    form = ", ".join(f"{key}={encoder[key]!r}" for key in _FORM if key in encoder)[:_LONGEST_FORM]
    return {
        **facts,
        "unsupported": f"encoder {kind}({form}): expected mmseg's D8, D16 or undilated form with "
        "style='pytorch'; other forms are not supported.",
    }
