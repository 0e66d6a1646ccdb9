"""A bundle's file against its checkpoint and the recorded choices, before a pixel is drawn.

Two halves. The file's network is compared with what PyTorch executes (`nrd_trt.model.program`), which repeats no fault
of the exporter and takes a file of any version. And the file is derived anew from the checkpoint and compared node by
node, which sees everything that a file holds, but is evidence only where the versions that wrote the file are here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto

from nrd_trt.data.samples import SCALES_COUNT
from nrd_trt.engine.bundle import Bundle
from nrd_trt.engine.record import BundleRecord, PrecisionRecord
from nrd_trt.errors import ConfigError, ExportError, NrdTrtError
from nrd_trt.figures import StructureRecord
from nrd_trt.graph.formats import NumberFormat
from nrd_trt.graph.metadata import GraphFacts, read_choices, read_facts
from nrd_trt.graph.network import FileNetwork, file_network
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision, to_quantized
from nrd_trt.graph.program import function_programs, graph_program
from nrd_trt.graph.quantize import plan_quantization, quantized_layers
from nrd_trt.program import Describe, Operation, Program, compare_programs
from nrd_trt.specs import QUANTIZED, DecodeSpec, Size
from nrd_trt.validation.rederive import other_kind, rederive_full
from nrd_trt.validation.structure_constants import describe_constant, readings_of, rounding_of
from nrd_trt.validation.structure_ends import (
    decode_attribute_differences,
    ending_differences,
    preprocessing_differences,
)
from nrd_trt.validation.structure_scales import scale_uses

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

_OF_CHECKPOINT = {"info", "decode", "upsample", "encoder", "head"}
"""Facts of a file that its checkpoint has too."""
_LISTED = 4
"""Entries of a list that a difference shows."""


def check_structure(
    file: onnx.ModelProto,
    record: BundleRecord,
    model: Segmentor,
    full: onnx.ModelProto,
    images: Sequence[np.ndarray] = (),
) -> StructureRecord:
    """Compare a bundle's file with its checkpoint.

    Args:
        file: The bundle's ``model.onnx``.
        record: The bundle's record.
        model: The checkpoint's network.
        full: The fp32 file that the exporter makes of it now, in the bundle's form, with both outputs.
        images: ``(h, w, 3) uint8`` RGB on which scales of activations are measured anew; none leaves that out.
    """
    executed, not_provable = executed_program(model, read_facts(file).shape.opt_hw)
    network, checked = network_differences(file, model, images, executed)
    network += [*_record_differences(file, record, model)]
    try:
        whole = whole_differences(file, expected_file(full, record), ranges_known=record.precision.ranges is not None)
    except NrdTrtError as exc:
        whole = [f"the file cannot be derived anew from its record: {exc}"]
    doubt = _doubt(record) if whole else None
    if doubt is None:
        differences = [*whole, *_told_only_by(network, whole)]
        checked["nodes"] = sum(len(entry.node) for entry in (file.graph, *file.functions))
    else:
        differences = network
        not_provable.append(f"{doubt}: wiring of preprocessing and decode, types and Q/DQ pairs are not compared")
        not_provable += _unordered(executed)
    if record.precision.asked in QUANTIZED and record.precision.ranges is None:
        not_provable.append(
            "the ranges of the calibration are not recorded: activation scales are not compared with them"
        )
    return StructureRecord.of("whole" if doubt is None else "layers", checked, differences, not_provable)


def prove_structure(
    bundle: Bundle, file: onnx.ModelProto, model: Segmentor, full: onnx.ModelProto | None = None
) -> StructureRecord:
    """Compare a bundle's file with its checkpoint; `full` is the checkpoint's fp32 file where there is one already."""
    try:
        images = list(bundle.references().images[:SCALES_COUNT])
        found = check_structure(file, bundle.record, model, full or rederive_full(model, bundle.graph), images)
    except ConfigError as exc:  # the form of the file is not one of this network's
        found = layer_structure(file, model)
        found = replace(found, differences=(str(exc), *found.differences), found=found.found + 1)
    if other := other_kind(model, bundle.graph):
        untold = f"{other}: the file is not compared with sound ones, which are of the checkpoint's kind"
        found = replace(found, not_provable=(*found.not_provable, untold))
    return found


def layer_structure(file: onnx.ModelProto, model: Segmentor, images: Sequence[np.ndarray] = ()) -> StructureRecord:
    """Compare a file with what PyTorch executes alone, as a build does with what it has just exported."""
    executed, not_provable = executed_program(model, read_facts(file).shape.opt_hw)
    lines, checked = network_differences(file, model, images, executed)
    return StructureRecord.of("layers", checked, lines, [*not_provable, *_unordered(executed)])


def _unordered(executed: Program) -> list[str]:
    """Return what is not compared of a transformer with PyTorch alone."""
    if all(operation.kind != "LayerNormalization" for operation in executed.operations):
        return []
    return ["tokens: how reshapes and transposes order them is compared with a file derived anew only"]


def executed_program(model: Segmentor, size_hw: Size) -> tuple[Program, list[str]]:
    """Return what PyTorch executes, or no operations and the reason where it executes what is not known here.

    Args:
        model: The checkpoint's network.
        size_hw: The file's; what windows mask depends on it.
    """
    from nrd_trt.model.plans import TWINS
    from nrd_trt.model.program import network_program

    try:
        return (network_program(model, size_hw) if model.config.encoder in TWINS else network_program(model)), []
    except ExportError as exc:
        return Program(operations=(), results={}), [
            f"PyTorch executes what is not known here ({exc.args[0].rstrip('.')}): layers and weights are not compared "
            "with it; the figures of the masks decide"
        ]


def network_differences(
    file: onnx.ModelProto,
    model: Segmentor,
    images: Sequence[np.ndarray] = (),
    expected: Program | None = None,
) -> tuple[list[str], dict[str, int]]:
    """Compare a file with what PyTorch executes: wiring, attributes, weights, scales, preprocessing, decode, facts.

    Args:
        file: In any precision.
        model: The checkpoint's network.
        images: See `check_structure`.
        expected: What PyTorch executes, where that is there already; without operations it is not compared.

    Returns:
        One line per difference, and how many things of each kind were compared.
    """
    graph, network = read_facts(file), file_network(file)
    lines = [*_fact_differences(graph, model)]
    if network is None:
        return [*lines, "the file has neither a decode nor logits: its network is not found"], {}
    expected = expected or executed_program(model, graph.shape.opt_hw)[0]
    known = bool(expected.operations)
    if known:
        lines += layer_differences(network, expected, model)
    lines += preprocessing_differences(file, network, model, graph)
    if model.config.is_nrd:
        lines += decode_attribute_differences(file, model, graph)
    lines += ending_differences(file, network, model, graph)
    if known and images and network.quantized:
        uses = scale_uses(network, expected, model, images)
        lines += [fault for use in uses if (fault := use.fault(len(images)))]
    return lines, _counts(network, expected) if known else {}


def layer_differences(network: FileNetwork, expected: Program, model: Segmentor) -> list[str]:
    """Compare the layers of a file with those that PyTorch executes, and look for faults of Q/DQ pairs."""
    spec = model.config.decode if model.config.is_nrd else None
    lines = compare_programs(network.program, expected, _rounded(expected, spec, network.numbers), commutes=True)
    name = network.numbers.name
    return lines + [f"`{tensor.name}`: {name}: {fault}" for tensor in network.quantized for fault in tensor.faults]


def expected_file(full: onnx.ModelProto, record: BundleRecord) -> onnx.ModelProto:
    """Derive the file of a record from the fp32 one: its layers in 8 bits and ranges, its types, its outputs.

    Where ranges are not recorded, activation scales are 1.

    Raises:
        ConfigError: The record names a layer that the network does not have, or not in this precision.
    """
    held = record.precision
    if held.asked == "int8" or held.asked == "fp8":
        plan = plan_quantization(full, held.quantized_layers, held.target, held.asked)
        ranges = held.ranges or {name: float(plan.format(name).largest) for name in plan.tensors}
        typed = to_quantized(full, plan, ranges, set(held.kept_fp32))
    else:
        typed = to_precision(full, held.asked, set(held.kept_fp32))
    return select_outputs(typed, record.model.output)


def whole_differences(file: onnx.ModelProto, expected: onnx.ModelProto, *, ranges_known: bool = True) -> list[str]:
    """Compare two files node by node, function by function, output by output; empty where they compute the same.

    Args:
        file: What is judged.
        expected: What it should be.
        ranges_known: Whether activation scales of `expected` are the recorded ones.
    """
    found, wanted, spec = graph_program(file), graph_program(expected), read_facts(expected).decode
    lines = compare_programs(found, wanted, _exact(wanted, spec, ranges_known=ranges_known))
    bodies, right = function_programs(file), function_programs(expected)
    for name in dict.fromkeys((*right, *bodies)):
        kind = name.split(".")[-1]
        if name not in bodies or name not in right:
            lines.append(f"`{kind}`: its function is {'missing' if name in right else 'extra'}")
            continue
        inside = compare_programs(bodies[name], right[name], _exact(right[name], None, ranges_known=True))
        lines += [f"{kind}: {line}" for line in inside]
    lines += [*_interface_differences(file, expected)]
    return lines


def _told_only_by(network: list[str], whole: list[str]) -> list[str]:
    """Return what the first half says of layers that the second says nothing of, under this name or another."""
    told = {line.split("`")[1] for line in whole if line.startswith("`")}
    found = {_found(line) for line in whole}
    rest = [
        line for line in network if not (line.startswith("`") and (line.split("`")[1] in told or _found(line) in found))
    ]
    return [line for line in rest if not whole or "cannot be run alone" not in line]


def _found(line: str) -> str:
    """Return what a line says that a layer has, without the layer's name and what is expected."""
    return line.partition("`: ")[2].partition(", expected")[0]


def _doubt(record: BundleRecord) -> str | None:
    """Say why a file derived anew is no evidence against a bundle's, or None where it is."""
    from nrd_trt.exporting.onnx_export import exporter_record

    if record.precision.quantizer == "modelopt":
        return "Model Optimizer placed the Q/DQ pairs"
    wrote, here = record.exporter, exporter_record()
    if wrote is None:
        return "what wrote the file is not recorded"
    if wrote == here:
        return None
    pairs = [(name, getattr(wrote, name), getattr(here, name)) for name in ("revision", "torch", "onnx", "onnxscript")]
    told = ", ".join(
        f"{'exporter ' if name == 'revision' else ''}{name} {was}, here {now}" for name, was, now in pairs if was != now
    )
    return f"written by other versions ({told})"


# --- what may differ --------------------------------------------------------------------------------------------------


def _rounded(expected: Program, spec: DecodeSpec | None, numbers: NumberFormat) -> Describe:
    """Judge weights by the rounding of their type in the file."""
    readings = readings_of(expected, spec, numbers)

    def describe(operation: Operation, label: str, found: np.ndarray, want: np.ndarray) -> str | None:
        comparable = want.size and want.shape == found.shape and want.ndim
        allowed = rounding_of(want, found.dtype, numbers) if comparable else 0.0
        return describe_constant(found, want, allowed, readings(operation, label))

    return describe


def _exact(expected: Program, spec: DecodeSpec | None, *, ranges_known: bool) -> Describe:
    """Judge constants by their bits."""
    readings = readings_of(expected, spec)

    def describe(operation: Operation, label: str, found: np.ndarray, want: np.ndarray) -> str | None:
        if label == "activation scale" and not ranges_known:
            return None
        if found.dtype != want.dtype:
            return f"is {found.dtype}, expected {want.dtype}"
        return describe_constant(found, want, 0.0, readings(operation, label))

    return describe


def _counts(network: FileNetwork, expected: Program) -> dict[str, int]:
    kinds = Counter(operation.kind for operation in expected.operations)
    arrays = [
        entry for operation in expected.operations for entry in operation.operands if isinstance(entry, np.ndarray)
    ]
    counts = {
        "operations": len(expected.operations),
        "convolutions": kinds["Conv"],
        "weights": sum(array.size for array in arrays),
    }
    name = f"{network.numbers.name} activations"
    counts |= {"linear layers": kinds["Gemm"]} if kinds["Gemm"] else {}
    return counts | ({name: len(network.quantized)} if network.quantized else {})


def _record_differences(file: onnx.ModelProto, record: BundleRecord, model: Segmentor) -> Iterator[str]:
    """Compare what the bundle's record and the file say, but for what the file says otherwise than the checkpoint."""
    graph = read_facts(file)
    told = {name for name, _ in _unequal(*_checkpoint_facts(graph, model), "")}
    for name, text in _unequal(asdict(record.model), asdict(graph), "the file's"):
        if name not in told:
            yield f"bundle.json: {text}"
    if record.precision.asked != graph.precision:
        yield f"bundle.json: precision {record.precision.asked}, the file's is {graph.precision}"
    if record.exporter is not None and graph.exporter is not None and record.exporter != graph.exporter:
        yield "bundle.json: exporter is another than the file's"
    yield from _type_differences(file, record.precision)


def _type_differences(file: onnx.ModelProto, held: PrecisionRecord) -> Iterator[str]:
    if choices := read_choices(file):
        names = {"kept_fp32": "kept_because"}
        recorded = {field.name: getattr(held, names.get(field.name, field.name)) for field in fields(choices)}
        yield from (f"bundle.json: precision: {text}" for _, text in _unequal(recorded, asdict(choices), "the file's"))
    found, told = set(quantized_layers(file)) if held.asked in QUANTIZED else set(), held.quantized_layers
    if len(found) != len(told):
        yield f"{held.asked}: {len(found)} layers, {len(told)} are recorded"


def _fact_differences(graph: GraphFacts, model: Segmentor) -> Iterator[str]:
    """Compare what a file says of its network with the checkpoint."""
    for _, text in _unequal(*_checkpoint_facts(graph, model), "the checkpoint's"):
        yield f"facts: {text}"


def _checkpoint_facts(graph: GraphFacts, model: Segmentor) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a file says of its network, and what a checkpoint does."""
    config = model.config
    right = {
        "info": asdict(model.info),
        "decode": asdict(config.decode) if config.is_nrd else None,
        "upsample": config.upsample,
        "encoder": config.encoder,
        "head": config.head,
    }
    said = asdict(graph)
    return {name: said[name] for name in sorted(_OF_CHECKPOINT)}, right


def _unequal(found: Mapping[str, Any], want: Mapping[str, Any], whose: str) -> Iterator[tuple[str, str]]:
    """Yield names and descriptions of the entries of two records that differ, nested ones by their own names."""
    for name in dict.fromkeys((*want, *found)):
        got, right = found.get(name), want.get(name)
        if isinstance(got, dict) and isinstance(right, dict):
            yield from ((f"{name}: {inner}", f"{name}: {text}") for inner, text in _unequal(got, right, whose))
        elif got != right:
            yield name, f"{name} {_compared(got, right, whose)}"


def _compared(got: object, right: object, whose: str) -> str:
    """Show two values, of long lists the first entries that differ."""
    if not (isinstance(got, tuple | list) and isinstance(right, tuple | list) and len(got) == len(right) > _LISTED):
        return f"{_short(got)}, {whose} is {_short(right)}"
    differ = [place for place, (one, other) in enumerate(zip(got, right, strict=True)) if one != other]
    shown = [f"[{place}] {_short(got[place])}, {whose} is {_short(right[place])}" for place in differ[:_LISTED]]
    return "; ".join([*shown, *([f"and {len(differ) - _LISTED} more"] if len(differ) > _LISTED else [])])


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}…"


def _interface_differences(file: onnx.ModelProto, expected: onnx.ModelProto) -> Iterator[str]:
    """Compare inputs, outputs and their types, versions of operators, and what the files say of themselves alone."""
    for what, found, want in (
        ("input", file.graph.input, expected.graph.input),
        ("output", file.graph.output, expected.graph.output),
    ):
        got, right = ({entry.name: _typed(entry) for entry in side} for side in (found, want))
        for name in dict.fromkeys((*right, *got)):
            if got.get(name) != right.get(name):
                yield f"{what} {name}: {got.get(name, 'absent')}, expected {right.get(name, 'none')}"
    versions = [
        {(name, entry.domain): entry.version for name, owner in _owners(side) for entry in owner.opset_import}
        for side in (file, expected)
    ]
    for name, domain in dict.fromkeys((*versions[1], *versions[0])):
        version, wanted = (side.get((name, domain)) for side in versions)
        if version != wanted:
            yield f"{name}: operators {domain or 'ai.onnx'} of version {version}, expected {wanted}"
    facts = (asdict(read_facts(side)) for side in (file, expected))
    found_facts, wanted_facts = (
        {key: value for key, value in side.items() if key not in _OF_CHECKPOINT} for side in facts
    )
    yield from (f"facts: {text}" for _, text in _unequal(found_facts, wanted_facts, "the derived file's"))


def _owners(model: onnx.ModelProto) -> Iterator[tuple[str, Any]]:
    yield "the file", model
    yield from ((entry.name, entry) for entry in model.functions)


def _typed(entry: onnx.ValueInfoProto) -> str:
    kind = entry.type.tensor_type
    dims = ", ".join(str(dim.dim_param or dim.dim_value) for dim in kind.shape.dim)
    return f"{TensorProto.DataType.Name(kind.elem_type).lower()} [{dims}]"
