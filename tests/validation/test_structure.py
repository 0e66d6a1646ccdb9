"""The file held against its checkpoint: each edit is named as itself; sound files of every form have no difference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nrd_trt import export
from nrd_trt.calibration.calibrator import Calibrator
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.bundle import ONNX_FILE, read_bundle
from nrd_trt.engine.record import BundleRecord
from nrd_trt.errors import RunnerError
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx
from nrd_trt.exporting.precision import derive_precision
from nrd_trt.figures import StructureRecord
from nrd_trt.graph.metadata import TypeChoices, read_choices, read_facts, write_choices, write_facts
from nrd_trt.graph.network import file_network
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.quantize import choose_layers, plan_quantization
from nrd_trt.model import load_model
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.program import network_program
from nrd_trt.program import Program
from nrd_trt.specs import PRECISIONS, QUANTIZED, CheckpointOptions, InputShape, Precision, Target
from nrd_trt.validation.rederive import measure_anew
from nrd_trt.validation.structure import (
    check_structure,
    expected_file,
    network_differences,
    prove_structure,
    whole_differences,
)
from nrd_trt.validation.structure_ends import preprocessing_differences
from nrd_trt.validation.validate import validate
from tests.artefacts import (
    SIZE_HW,
    both_outputs,
    build,
    bundle,
    checkpoint,
    plant,
    rewrite_facts,
    trained_model,
)
from tests.faults import (
    Change,
    activation_scale,
    double_row,
    e5m2,
    not_saturating,
    other_mean,
    overflowing_weights,
    quantise_too,
    rename,
    shift_coordinates,
    swap_rgb,
    transpose_w1_in_decode,
    weights_of,
)
from tests.helpers import small_model

CONV = "backbone.layer5.1.conv.1.conv"
POINTWISE = "backbone.layer4.1.conv.2.conv"
READ = "backbone.layer4.2/Add"
DILATED = "decode_head.aspp_modules.3.depthwise_conv.conv"


@cache
def program() -> Program:
    """What PyTorch executes of the trained network."""
    return network_program(trained_model())


def scenes() -> list[np.ndarray]:
    return [street_scene(seed, SIZE_HW).image for seed in range(2)]


@cache
def ranges(target: Target = "gpu") -> dict[str, float]:
    """Sound ranges of the trained network."""
    tensors = plan_quantization(both_outputs(), choose_layers(both_outputs()), target).tensors
    return measure_anew(both_outputs(), tensors, scenes(), threads=1)


@cache
def record_of(precision: Precision) -> BundleRecord:
    """The record of a sound bundle."""
    record = read_bundle(bundle("fp16")).record
    quantised: dict[str, Any] = {}
    if precision in QUANTIZED:
        layers = choose_layers(both_outputs(), precision=precision)  # type: ignore[arg-type]
        quantised = {f"{precision}_layers": layers, "ranges": ranges(), "quantizer": "own"}
    types = replace(record.precision, asked=precision, **quantised)
    return replace(record, precision=types, model=replace(record.model, precision=precision))


@cache
def file_of(precision: Precision) -> onnx.ModelProto:
    """Its file; do not change it."""
    return expected_file(both_outputs(), record_of(precision))


@cache
def record_for_cpu() -> BundleRecord:
    record = record_of("int8")
    return replace(record, precision=replace(record.precision, ranges=ranges("cpu"), target="cpu"))


def proof_for_cpu(change: Change = lambda model: None, **record: Any) -> StructureRecord:
    """Prove an int8 file for a CPU that was changed."""
    file = expected_file(both_outputs(), record_for_cpu())
    write_choices(file, TypeChoices(target="cpu", int8_layers=choose_layers(both_outputs()), ranges=ranges("cpu")))
    change(file)
    here = replace(record_for_cpu(), **record)
    types = replace(here.precision, quantizer=None)
    return check_structure(file, replace(here, precision=types), trained_model(), both_outputs(), scenes())


def edited(precision: Precision, change: Change) -> onnx.ModelProto:
    file = copy.deepcopy(file_of(precision))
    change(file)
    return file


def proof(of: Precision, change: Change = lambda model: None, **record: Any) -> StructureRecord:
    """Prove a file that was changed."""
    record_here = replace(record_of(of), **record)
    return check_structure(edited(of, change), record_here, trained_model(), both_outputs())


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def attribute(node_name: str, name: str, value: Any) -> Change:
    """Set an attribute of a node."""

    def change(model: onnx.ModelProto) -> None:
        node = node_of(model, node_name)
        kept = [entry for entry in node.attribute if entry.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def stored(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Change an initializer, by the name that it has in fp32."""

    def change(model: onnx.ModelProto) -> None:
        tensor, values = weights_of(model, name)
        tensor.CopyFrom(numpy_helper.from_array(edit(values).astype(values.dtype), tensor.name))

    return change


def rows(edit: Callable[[np.ndarray], np.ndarray], *chosen: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[list(chosen)] = edit(values[list(chosen)])
        return values

    return change


def reads(node_name: str, index: int, tensor: str) -> Change:
    """Let a node read another tensor."""

    def change(model: onnx.ModelProto) -> None:
        node_of(model, node_name).input[index] = tensor

    return change


def swapped(node_name: str, first: int, second: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = node_of(model, node_name)
        node.input[first], node.input[second] = node.input[second], node.input[first]

    return change


def inserted(node_name: str, op: str, **attributes: Any) -> Change:
    """Put a node of one input between a node and its first input."""

    def change(model: onnx.ModelProto) -> None:
        place = next(index for index, node in enumerate(model.graph.node) if node.name == node_name)
        node = model.graph.node[place]
        extra = helper.make_node(op, [node.input[0]], ["extra/out"], name="extra", **attributes)
        node.input[0] = "extra/out"
        model.graph.node.insert(place, extra)

    return change


def removed(node_name: str) -> Change:
    """Take a node out; its readers read its first input."""

    def change(model: onnx.ModelProto) -> None:
        node = node_of(model, node_name)
        source, result = node.input[0], node.output[0]
        model.graph.node.remove(node)
        for reader in model.graph.node:
            reader.input[:] = [source if name == result else name for name in reader.input]

    return change


def without_bias(layer: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        del node_of(model, f"{layer}/Conv").input[2]

    return change


def in_body(output: str, edit: Callable[[onnx.NodeProto], None]) -> Change:
    """Change the node of every function that makes a tensor."""

    def change(model: onnx.ModelProto) -> None:
        for function in model.functions:
            for node in function.node:
                if output in node.output:
                    edit(node)

    return change


def constant_in_body(output: str, edit: Callable[[np.ndarray], np.ndarray]) -> Change:
    def edit_node(node: onnx.NodeProto) -> None:
        values = numpy_helper.to_array(node.attribute[0].t)
        node.attribute[0].t.CopyFrom(numpy_helper.from_array(edit(values).astype(values.dtype)))

    return in_body(output, edit_node)


def swap_inputs(node: onnx.NodeProto) -> None:
    node.input[0], node.input[1] = node.input[1], node.input[0]


def in_facts(**changes: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        facts = read_facts(model)
        write_facts(model, replace(facts, **{name: edit(getattr(facts, name)) for name, edit in changes.items()}))

    return change


def several(*changes: Change) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for one in changes:
            one(model)

    return change


def biases_swapped(model: onnx.ModelProto) -> None:
    """Let the decode add b1 where b0 belongs."""
    for function in model.functions:
        for node in function.node:
            node.input[:] = [{"b0": "b1", "b1": "b0"}.get(name, name) for name in node.input]


def dilated_by_8(model: onnx.ModelProto) -> None:
    """Change a dilation and its padding, so that the file still runs."""
    for name in ("dilations", "pads"):
        attribute(f"{DILATED}/Conv", name, [8, 8] if name == "dilations" else [8, 8, 8, 8])(model)


def fused_without_shift(conv: Any, norm: Any) -> Any:
    """Fold a batch norm as a faulty exporter might, which loses its shift."""
    folded = fuse_conv_bn_eval(conv, norm)
    folded.bias.data *= 0
    return folded


def relu6_at(limit: float) -> Change:
    return stored("max_val_cast", lambda values: np.full_like(values, limit))


# Edit -> precisions, the edit, what the differences say.
EDITS: dict[str, tuple[tuple[Precision, ...], Change, str]] = {
    "dilation 9 -> 8": (
        ("fp32", "fp16", "bf16", "int8"),
        attribute(f"{DILATED}/Conv", "dilations", [8, 8]),
        f"`{DILATED}`: dilations [8, 8], expected [9, 9]",
    ),
    "padding": (
        ("fp16",),
        attribute(f"{DILATED}/Conv", "pads", [8, 8, 10, 10]),
        f"`{DILATED}`: pads [8, 8, 10, 10], expected [9, 9, 9, 9]",
    ),
    "padding rule": (("fp32",), attribute(f"{DILATED}/Conv", "auto_pad", "SAME_UPPER"), "auto_pad SAME_UPPER"),
    "W0 order": (("fp16",), constant_in_body("input_sections", lambda v: v[::-1]), "`w0_xy`"),
    "one channel zero": (("fp32", "fp16"), stored(f"{CONV}.weight", rows(np.zeros_like, 7)), "row 7 of 576: zero"),
    "half the channels zero": (
        ("fp16",),
        stored(f"{CONV}.weight", rows(np.zeros_like, *range(288))),
        "rows 0–287 of 576: zero there",
    ),
    "weight ×2": (("fp32", "bf16"), stored(f"{CONV}.weight", lambda v: v * 2), f"`{CONV}`: weight is ×2 of"),
    "row ×2": (("fp16",), stored(f"{CONV}.weight", rows(lambda v: v * 2, 3, 4)), "rows 3–4 of 576: ×2 there"),
    "rolled rows": (("fp16",), stored(f"{CONV}.weight", lambda v: np.roll(v, 1, 0)), "in another order"),
    "one value": (("fp32",), stored(f"{CONV}.weight", lambda v: v + (np.arange(v.size) == 9).reshape(v.shape) * 1e-4),
                  f"`{CONV}`: weight differs in row 1"),
    "noise of 5 %": (
        ("fp32", "fp16", "bf16"),
        stored(f"{CONV}.weight", lambda v: v * (1 + 0.05 * np.sin(np.arange(v.size)).reshape(v.shape))),
        f"`{CONV}`: weight differs in",
    ),
    "bias lost": (("fp32", "int8"), without_bias(CONV), f"`{CONV}`: bias is absent, expected a constant"),
    "bias zero": (("fp16", "int8"), stored(f"{CONV}.bias", np.zeros_like), f"`{CONV}`: bias is zero"),
    "another layer's weight": (
        ("fp16",),
        reads(f"{CONV}/Conv", 1, "backbone.layer5.2.conv.1.conv.weight/fp16"),
        f"`{CONV}`: weight is that of `backbone.layer5.2.conv.1.conv`",
    ),
    "BGR": (("fp32", "fp16"), swap_rgb, "red and blue are swapped"),
    "mean": (("fp32",), other_mean, "`preprocessing`: input 1 "),
    "std ×1.02": (("fp16",), stored("preprocessing.std", lambda v: v * 1.02), "another mean or standard deviation"),
    "ReLU6 at 3": (("fp32", "int8"), relu6_at(3), "`backbone.conv1.act`: max is 3, expected 6"),
    "ReLU6 lost": (("fp32",), removed("backbone.conv1.act/Clip"), "`backbone.conv1.act`: Clip is missing"),
    "another activation": (("fp16",), inserted(f"{CONV}/Conv", "Sigmoid"), "`extra`: Sigmoid is extra"),
    "ASPP order": (("fp32", "bf16"), swapped("Concat", 1, 2), "inputs in the order"),
    "pool reads another stage": (
        ("fp32",),
        reads("decode_head.aspp_modules.0.conv/Conv", 0, "backbone.layer6.2/Add"),
        "`decode_head.aspp_modules.0.conv`: input is",
    ),
    "shortcut lost": (("fp16",), removed("backbone.layer6.2/Add"), "`backbone.layer6.2`: Add is missing"),
    "coordinates": (("fp32", "bf16"), shift_coordinates, "x_table"),
    "W1 transposed in the decode": (("fp32",), transpose_w1_in_decode, "Transpose is extra"),
    "b0 and b1": (("fp16",), biases_swapped, "`b0`: input 0 is `w0_flat` (output 3), expected `w0_flat` (output 1)"),
    "W2 as [d][K]": (("fp32",), constant_in_body("w2_shape", lambda v: v[[0, 2, 1]]), "w2"),
    "patch transposed": (
        ("fp32",),
        in_body("rows", lambda node: node.attribute[0].ints.__setitem__(slice(None), [0, 3, 1, 5, 2, 4])),
        "`rows`: perm",
    ),
    "align_corners": (
        ("fp32", "fp16"),
        in_body("enlarged", lambda node: setattr(node.attribute[1], "s", b"align_corners")),
        "`enlarged`: coordinate_transformation_mode align_corners, expected half_pixel",
    ),
    "nearest": (
        ("bf16",),
        in_body("enlarged", lambda node: setattr(node.attribute[0], "s", b"nearest")),
        "`enlarged`: mode nearest, expected linear",
    ),
    "argmin": (("fp32",), in_body("index", lambda node: setattr(node, "op_type", "ArgMin")), "ArgMin"),
    "factors swapped": (("fp32",), in_body("z1_weighted", swap_inputs), "`z1_weighted`: inputs in the order"),
    "theta for both": (("fp32",), reads("decode_head/NrdPatchDecodeMask", 1, "theta"), "NrdPatchDecodeMask"),
    "K of the node": (
        ("fp16",),
        attribute("decode_head/NrdPatchDecodeMask", "num_classes", 12),
        "num_classes 12, expected 11",
    ),
    "one class's bias": (
        ("fp16",),
        stored("decode_head.classifier.classifier.1.bias", rows(lambda v: v + 1, 760)),
        "`decode_head.classifier.classifier.1`: bias differs in row 760",
    ),
    "activation scale ×4": (
        ("int8",),
        stored("backbone.conv1.act/Clip/scale", lambda v: v * 4),
        "`backbone.conv1.act`: activation scale is",
    ),
    "weight scales rolled": (
        ("int8",),
        stored(f"{CONV}.weight/scale", lambda v: np.roll(v, 1)),
        f"`{CONV}`: weight scale differs",
    ),
    "int8 weights": (
        ("int8",),
        stored(f"{CONV}.weight/int8", rows(lambda v: v // 2, 5)),
        f"`{CONV}`: 8-bit weight differs in row 5",
    ),
    "DQ with another scale": (
        ("int8",),
        reads("backbone.conv1.act/Clip/DQ", 1, "pixels/scale/fp16"),
        "`backbone.conv1.act`: activation scale is 0.0",
    ),
    "an activation in E5M2": (
        ("fp8",),
        e5m2(READ),
        "`backbone.layer4.2`: activation zero point is float8_e5m2, expected float8_e4m3fn",
    ),
    "an activation that is not saturated": (
        ("fp8",),
        not_saturating(READ),
        "`backbone.layer4.2`: saturate 0, expected 1",
    ),
    "the scale of int8": (
        ("fp8",),
        activation_scale(READ, 448 / 127),
        "`backbone.layer4.2`: activation scale is",
    ),
    "weights beyond the range": (
        ("fp8",),
        overflowing_weights(POINTWISE),
        f"`{POINTWISE}`: 8-bit weight has",
    ),
    "a depthwise convolution in fp8": (("fp8",), quantise_too(CONV, 6.0), f"`{CONV}`: DequantizeLinear is extra"),
    "pair lost": (("int8",), lambda model: [removed(f"backbone.conv1.act/Clip/{end}")(model) for end in ("DQ", "Q")],
                  "QuantizeLinear is missing"),
    "class names": (
        ("fp32",),
        in_facts(info=lambda info: replace(info, class_names=info.class_names[::-1])),
        "facts: info: class_names",
    ),
    "palette": (("fp16",), in_facts(info=lambda info: replace(info, palette=info.palette[::-1])), "palette"),
    "mean of the facts": (("fp16",), in_facts(info=lambda info: replace(info, mean=(0.0, 0.0, 0.0))), "mean"),
    "upsample of the facts": (("fp16",), in_facts(upsample=lambda value: 2), "upsample 2"),
    "a layer in fp32": (
        ("fp16",),
        lambda model: [inserted(f"{CONV}/Conv", "Cast", to=TensorProto.FLOAT)(model)][0],
        "`extra`: Cast is extra",
    ),
}  # fmt: skip


def edits_by_precision() -> Iterator[Any]:
    """Every edit in one precision, each of its own by turns; `make test-all` has all of them."""
    for place, (edit, (precisions, *_)) in enumerate(EDITS.items()):
        for turn, precision in enumerate(precisions):
            left = () if turn == place % len(precisions) else pytest.mark.all_combinations
            yield pytest.param(edit, precision, marks=left, id=f"{edit}-{precision}")


@pytest.mark.parametrize(("edit", "precision"), list(edits_by_precision()))
def test_an_edit_of_the_file_is_named(edit: str, precision: Precision) -> None:
    """By the file that is derived anew, or where that says it in other words, by what PyTorch executes."""
    _, change, words = EDITS[edit]
    file = edited(precision, change)
    told = whole_differences(file, file_of(precision))
    if words not in "\n".join(told):
        told += network_differences(file, trained_model(), expected=program())[0]
    assert words in "\n".join(told)
    assert len(told) <= 36, "\n".join(told)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_sound_file_has_no_difference_whatever_its_parts_are_called(precision: Precision) -> None:
    for change in (lambda model: None, rename):
        found = proof(precision, change)
        assert (found.compared, found.differences, found.not_provable) == ("whole", (), ())
        assert found.checked["convolutions"] == 64
        assert found.checked["weights"] > 3_000_000


def zero_points(of: int, to: int) -> Change:
    """Let another integer stand for 0."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.startswith("uint8.") and numpy_helper.to_array(tensor) == of:
                tensor.CopyFrom(numpy_helper.from_array(np.uint8(to), tensor.name))

    return change


def as_for_gpu(model: onnx.ModelProto) -> None:
    write_choices(model, replace(read_choices(model) or TypeChoices(), target="gpu"))


def test_a_sound_file_for_a_cpu_has_no_difference() -> None:
    found = proof_for_cpu()
    assert (found.compared, found.differences, found.not_provable) == ("whole", (), ())


def test_a_file_for_a_cpu_is_not_one_for_a_gpu() -> None:
    found = proof_for_cpu(as_for_gpu)
    assert "`pixels`: int8: quantised to uint8 and read from uint8, expected int8" in found.differences
    found = proof_for_cpu(precision=replace(record_for_cpu().precision, target="gpu"))
    assert "`pixels`: activation zero point is uint8, expected int8" in found.differences


@pytest.mark.parametrize("compared", ["whole", "layers"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (zero_points(128, 127), "zero point"),
        (zero_points(128, 0), "zero point"),
        (zero_points(0, 3), "zero point"),
    ],
    ids=["near the middle", "cuts off what is negative", "not at 0"],
)
def test_faults_of_a_file_for_a_cpu(change: Change, words: str, compared: str) -> None:
    other = replace(record_of("fp32").exporter, torch="2.7.0")  # type: ignore[type-var]
    found = proof_for_cpu(change, **({"exporter": other} if compared == "layers" else {}))
    assert found.compared == compared
    assert words in "\n".join(found.differences)


def test_validation_finds_the_same_whatever_the_parts_of_a_file_are_called(tmp_path: Path) -> None:
    """Sound files, twins, stages and causes, too, are found by the places of nodes."""
    fault, options = double_row("backbone.layer5.1.conv.2.conv", 7), {"localise": True, "threads": 1, "progress": False}
    changes = {"renamed": (rename,), "faulty": (fault,), "both": (fault, rename)}
    sound, named, otherwise = (
        validate(plant(bundle("fp16"), tmp_path / f"{name}.nrd", several(*change)), checkpoint=checkpoint(), **options)
        for name, change in changes.items()
    )
    assert sound.failures == () and sound.soundness is not None and len(sound.soundness.twin) == 7
    assert (otherwise.soundness, otherwise.localisation) == (named.soundness, named.localisation)
    assert otherwise.failures == named.failures


def test_the_network_of_another_kind_is_not_held_beside_sound_files() -> None:
    found = prove_structure(read_bundle(bundle("fp32")), file_of("fp32"), small_model(head="deeplabv3plus"))
    assert "a checkpoint of the bundle's kind" in found.not_provable[-1]
    assert "not compared with sound ones" in found.not_provable[-1]


@pytest.mark.parametrize("edit", ["dilation 9 -> 8", "ASPP order", "align_corners", "BGR", "coordinates"])
def test_a_file_of_another_version_is_held_against_the_network(edit: str) -> None:
    """Such a file cannot be derived anew, so these are found by what PyTorch executes."""
    other = replace(record_of("fp32").exporter, torch="2.7.0")  # type: ignore[type-var]
    found = proof("fp32", EDITS[edit][1], exporter=other)
    assert found.compared == "layers"
    assert "torch 2.7.0, here" in found.not_provable[0]
    assert found.differences


def test_a_sound_file_of_another_version_that_is_derived_alike_is_proven_whole() -> None:
    found = proof("fp16", exporter=None)
    assert (found.compared, found.differences, found.not_provable) == ("whole", (), ())


def test_a_fault_of_the_exporter_is_found_by_the_half_that_does_not_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that the faulty exporter derives anew has the same fault."""
    monkeypatch.setattr("nrd_trt.model.folding.fuse_conv_bn_eval", fused_without_shift)
    file = export_onnx(trained_model(), ExportOptions(shape=InputShape.static(SIZE_HW)))
    lines, _ = network_differences(file, trained_model(), expected=program())
    lost = [line for line in lines if "bias is zero" in line or "bias is absent" in line]
    assert lost[0].startswith("`backbone.conv1.conv`: ")
    assert len(lost) > 50


@pytest.mark.parametrize(
    "config",
    [
        {"head": "deeplabv3plus", "dilations": (1, 2, 5, 7)},
        *(
            pytest.param(config, marks=pytest.mark.all_combinations)
            for config in (
                {"head": "nrd_no_aspp"},
                {"head": "bilinear"},
                {"hidden": 8, "guidance_channels": 4, "dilations": (1, 2, 5, 7)},
            )
        ),
    ],
)
def test_other_networks_have_no_difference(config: dict[str, Any]) -> None:
    model = small_model(**config)
    file = export_onnx(model, ExportOptions(shape=InputShape.static(SIZE_HW)))
    lines, checked = network_differences(file, model)
    assert lines == []
    assert checked["convolutions"] > 50


def test_pairs_that_model_optimizer_places_are_not_provable_and_no_difference() -> None:
    """It decides where they stand; what they stand between is held against the network all the same."""

    def paired_elsewhere(model: onnx.ModelProto) -> None:
        tensor = "backbone.layer6.2.conv.2.conv/Conv"
        place = next(index for index, node in enumerate(model.graph.node) if node.name == tensor)
        output = model.graph.node[place].output[0]
        for node in model.graph.node:
            node.input[:] = ["other/dequantized" if name == output else name for name in node.input]
        operands = ["pixels/scale/fp16", "int8.zero"]
        pair = [
            helper.make_node("QuantizeLinear", [output, *operands], ["other/int8"], name="other/Q"),
            helper.make_node("DequantizeLinear", ["other/int8", *operands], ["other/dequantized"], name="other/DQ"),
        ]
        for node in reversed(pair):
            model.graph.node.insert(place + 1, node)

    types = replace(record_of("int8").precision, quantizer="modelopt", ranges=None)
    found = proof("int8", paired_elsewhere, precision=types)
    assert (found.compared, found.differences) == ("layers", ())
    assert "Model Optimizer placed the Q/DQ pairs" in found.not_provable[0]
    faulty = proof("int8", several(paired_elsewhere, EDITS["dilation 9 -> 8"][1]), precision=types)
    assert f"`{DILATED}`: dilations [8, 8], expected [9, 9]" in faulty.differences


def test_validate_tells_the_differences_before_any_mask(tmp_path: Path) -> None:
    stages: list[str] = []
    path = plant(bundle("fp16"), tmp_path / "faulty.nrd", dilated_by_8)
    options: dict[str, Any] = {"checkpoint": checkpoint(), "min_agreement": 0.0, "threads": 1, "progress": False}
    found = validate(path, **options, on_stage=stages.append)
    assert stages.index("comparing the file with the checkpoint") < stages.index("comparing the masks")
    assert found.structure is not None and not found.passed
    line = f"structure: `{DILATED}`: dilations [8, 8], expected [9, 9]"
    assert line in found.failures
    assert found.to_dict()["structure"]["differences"] == list(found.structure.differences)
    without = validate(path, **options, structure=False)
    assert without.structure is None and line not in without.failures
    assert validate(path, min_agreement=0.0, threads=1, progress=False).structure is None


def test_facts_of_the_record_are_held_against_the_file(tmp_path: Path) -> None:
    path = plant(bundle("fp16"), tmp_path / "faulty.nrd", lambda model: None)
    facts = read_bundle(path).record.model.to_dict()
    rewrite_facts(path, model={**facts, "info": {**facts["info"], "mean": [0.0, 0.0, 0.0]}})
    found = prove_structure(read_bundle(path), onnx.load(path / ONNX_FILE), trained_model(), both_outputs())
    assert any("bundle.json: info: mean" in line for line in found.differences)


def test_a_build_holds_its_export_against_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said of the checkpoint is recorded, and `validate` loads it so."""
    sound = build(checkpoint(), tmp_path / "sound.nrd", precision="fp32", size=SIZE_HW, mean=(100.0, 110.0, 120.0))
    assert sound["validation"]["structure"]["differences"] == []
    assert sound["options"]["mean"] == [100.0, 110.0, 120.0]
    proven = validate(tmp_path / "sound.nrd", checkpoint=checkpoint(), threads=1, progress=False)
    assert proven.structure is not None and proven.passed
    assert (proven.structure.compared, proven.structure.differences) == ("whole", ())
    again = build(tmp_path / "sound.nrd", tmp_path / "again.nrd", checkpoint=checkpoint())
    assert again["validation"]["structure"]["differences"] == []
    monkeypatch.setattr("nrd_trt.model.folding.fuse_conv_bn_eval", fused_without_shift)
    # The tests share exports of equal networks; this one is no other's.
    faulty = build(checkpoint(), tmp_path / "faulty.nrd", precision="fp32", size=SIZE_HW, mean=(90.0, 91.0, 92.0))
    assert not faulty["passed"]
    assert any(
        line.startswith("structure: `backbone.conv1.conv`: bias is ") for line in faulty["validation"]["failures"]
    )


def test_a_file_carries_what_was_said_of_its_checkpoint(tmp_path: Path) -> None:
    """A bundle built from the file records it, and `validate` loads the checkpoint with it."""
    said: dict[str, Any] = {
        "mean": (100.0, 110.0, 120.0),
        "class_names": tuple(f"thing {index}" for index in range(11)),
    }
    file, path = tmp_path / "m.onnx", tmp_path / "made.nrd"
    export(checkpoint(), file, size=SIZE_HW, **said, threads=1, progress=False)
    made = build(file, path, precision="fp32", checkpoint=checkpoint())
    assert made["passed"] and made["options"] == made["model"]["options"]
    record = read_bundle(path).record
    assert record.options == record.model.options == CheckpointOptions(**said)
    assert validate(path, checkpoint=checkpoint(), threads=1, progress=False).failures == ()
    early, other = onnx.load(file), tmp_path / "early.nrd"  # a file of a version that did not tell it
    early.metadata_props.remove(next(entry for entry in early.metadata_props if entry.key == "nrd_trt.options"))
    file.write_bytes(early.SerializeToString())
    assert build(file, other, precision="fp32", checkpoint=checkpoint(), **said)["passed"]
    record = read_bundle(other).record
    assert (record.model.options, record.options) == (None, CheckpointOptions(**said))
    assert not build(file, tmp_path / "silent.nrd", precision="fp32", checkpoint=checkpoint())["passed"]


def loud_checkpoint(path: Path) -> Path:
    """The trained network with one channel of a layer too near fp16's end, before it is clipped."""
    model = copy.deepcopy(trained_model())
    with torch.no_grad():
        model.get_parameter("backbone.layer3.1.conv.0.bn.bias")[0] = 5e4
    save_checkpoint(model, path)
    return path


@pytest.mark.filterwarnings("ignore:c:UserWarning")  # so few scenes do not show every class
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_typed_file_tells_how_it_was_typed(precision: Precision, tmp_path: Path) -> None:
    """A bundle that is built from it records that, and is proven whole."""
    trained, source = checkpoint(), tmp_path / "typed.onnx"
    if precision == "int8":
        full = select_outputs(both_outputs(), "mask")
        calibrator = Calibrator("synthetic", images=4, threads=1, progress=False)
        onnx.save(derive_precision(full, "int8", scenes(), calibrator=calibrator, threads=1, progress=False), source)
    else:
        trained = loud_checkpoint(tmp_path / "loud.safetensors")
        made = export(trained, source, size=SIZE_HW, precision="fp16", progress=False)
        assert made.parity.passed and "backbone.layer3.1.conv.0.conv/Conv" in made.kept_fp32
    record = build(source, tmp_path / "made.nrd", checkpoint=trained, min_agreement=0.5)
    told = read_choices(onnx.load(source))
    assert told is not None
    assert record["precision"]["kept_because"] == told.kept_fp32
    assert record["precision"]["ranges"] == told.ranges
    assert record["precision"]["int8_layers"] == list(told.int8_layers)
    assert (len(told.kept_fp32) > 0, len(told.int8_layers) > 50) == (precision == "fp16", precision == "int8")
    assert record["validation"]["structure"]["differences"] == []
    found = prove_structure(read_bundle(tmp_path / "made.nrd"), onnx.load(source), load_model(trained))
    assert (found.compared, found.differences, found.not_provable) == ("whole", (), ())


def test_a_file_and_a_bundle_are_held_against_the_network_where_they_are_built_from(tmp_path: Path) -> None:
    path = plant(bundle("fp16"), tmp_path / "faulty.nrd", dilated_by_8)
    line = f"structure: `{DILATED}`: dilations [8, 8], expected [9, 9]"
    for place, source in enumerate((path, path / ONNX_FILE)):
        rebuilt = build(source, tmp_path / f"{place}.nrd", checkpoint=checkpoint(), min_agreement=0.0)
        assert not rebuilt["passed"]
        assert line in rebuilt["validation"]["failures"]


def test_choices_of_the_record_are_held_against_those_of_the_file() -> None:
    def tells(model: onnx.ModelProto) -> None:
        write_choices(model, TypeChoices(kept_fp32={"a": "b"}))

    assert any("bundle.json: precision: kept_fp32" in line for line in proof("fp16", tells).differences)


def test_a_file_that_cannot_run_is_an_error_that_tells_the_differences(tmp_path: Path) -> None:
    path = plant(bundle("fp16"), tmp_path / "faulty.nrd", EDITS["dilation 9 -> 8"][1])
    with pytest.raises(RunnerError, match=r"(?s)dilations \[8, 8\], expected \[9, 9\].*and the file cannot be run"):
        validate(path, checkpoint=checkpoint(), threads=1, progress=False)


def test_scales_are_measured_anew_where_the_record_has_the_same_fault() -> None:
    """A calibrator that is wrong writes wrong ranges into the record as well."""
    name, record = "backbone.layer5.1.conv.0.act/Clip", record_of("int8")
    wrong = replace(record.precision, ranges={**ranges(), name: ranges()[name] / 4})
    file = edited("int8", stored(f"{name}/scale", lambda values: values / 4))
    found = check_structure(file, replace(record, precision=wrong), trained_model(), both_outputs(), scenes())
    (line,) = found.differences
    assert line.startswith("`backbone.layer5.1.conv.0.act`: activation scale")
    assert "times the squared error" in line


def leave_preprocessing_out(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["image" if name == "pixels" else name for name in node.input]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda model: None, ""),
        (other_mean, "preprocessing: "),
        (swap_rgb, "preprocessing: red and blue are swapped"),
        (leave_preprocessing_out, "preprocessing: another mean or standard deviation"),
    ],
    ids=["sound", "mean", "BGR", "none"],
)
def test_preprocessing_of_planar_bytes_is_run(change: Change, told: str) -> None:
    form = ExportOptions(shape=InputShape.static(SIZE_HW), input_form="rgb_float")
    change(file := to_precision(export_onnx(trained_model(), form), "fp16"))
    network = file_network(file)
    assert network is not None
    lines = preprocessing_differences(file, network, trained_model(), read_facts(file))
    assert [line[: len(told)] for line in lines] == ([told] if told else [])


RANGED: dict[str, Any] = {"dynamic": ((64, 64), SIZE_HW, (96, 128))}
SCENES: dict[str, Any] = {"precision": "int8", "calibration": "synthetic", "images": 3}
FORMS: dict[str, dict[str, Any]] = {
    "dynamic, batch": {"precision": "fp16", "batch": (1, 2, 3), **RANGED},
    "float, both outputs": {"precision": "bf16", "input_form": "float", "outputs": ("mask", "logits")},
    "packed masks": {"precision": "fp16", "mask_encoding": "u8x4", "batch": 2},
    "float": {"precision": "fp16", "input_form": "float"},
    "planar bytes": {"precision": "bf16", "input_form": "rgb_float", "outputs": ("logits", "mask")},
    "planar bytes, int8, BGR": {**SCENES, "input_form": "rgb_float", "bgr": True, "class_names": tuple("abcdefghijk")},
    "some layers in int8": {**SCENES, "outputs": ("logits",), "include": [r"backbone.layer[3-5]"], "exclude": ["r4.1"]},
    "int8, dynamic, BGR": {**SCENES, **RANGED, "recipe": "mse", "bgr": True, "class_names": tuple("abcdefghijk")},
}


@pytest.mark.all_combinations
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", FORMS)
def test_sound_bundles_of_every_form_are_proven_whole(form: str, tmp_path: Path) -> None:
    options = {**({} if "dynamic" in FORMS[form] else {"size": SIZE_HW}), **FORMS[form]}
    made = build(checkpoint(), tmp_path / "made.nrd", **{**options, "min_agreement": 0.0})
    assert made["validation"]["structure"]["differences"] == []
    build(tmp_path / "made.nrd", tmp_path / "again.nrd", min_agreement=0.0)
    for name in ("made", "again"):
        found = validate(tmp_path / f"{name}.nrd", checkpoint=checkpoint(), threads=1, progress=False).structure
        assert found is not None
        assert (found.compared, found.differences, found.not_provable) == ("whole", (), ())
