"""Causes that are named are true: each planted fault is named as itself, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from nrd_trt.data.samples import Sample
from nrd_trt.data.synthetic import street_scene
from nrd_trt.decode.misread import misread_orders
from nrd_trt.figures import Localisation
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.quantize import choose_layers, insert_qdq, plan_quantization
from nrd_trt.model import program
from nrd_trt.model.stages import predict_stages
from nrd_trt.specs import Precision
from nrd_trt.validation.causes import causes_in_data
from nrd_trt.validation.localise import compare_stages
from nrd_trt.validation.rederive import measure_anew
from nrd_trt.validation.stages import PREPROCESSING, TOLERANCES, Finding
from tests.artefacts import SIZE_HW, both_outputs, trained_model
from tests.faults import other_mean, shift_coordinates, swap_rgb, transpose_w1_in_decode, weights_of

Change = Callable[[onnx.ModelProto], None]

EXPANDING, DEPTHWISE, ATROUS = (
    "backbone.layer4.1.conv.0.conv", "backbone.layer4.1.conv.1.conv", "decode_head.aspp_modules.3.depthwise_conv.conv",
)  # fmt: skip
CONTROLLER = "decode_head.classifier.classifier.1"


def weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Store other values of one weight or bias."""

    def planted(model: onnx.ModelProto) -> None:
        tensor, values = weights_of(model, name)
        tensor.CopyFrom(numpy_helper.from_array(change(values).astype(np.float32), tensor.name))

    return planted


def several(*changes: Change) -> Change:
    def planted(model: onnx.ModelProto) -> None:
        for change in changes:
            change(model)

    return planted


def set_rows(rows: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[rows] = value
        return values

    return change


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def attribute(name: str, key: str, value: object) -> Change:
    """Give a node another attribute."""

    def planted(model: onnx.ModelProto) -> None:
        set_attribute(node_of(model, name), key, value)

    return planted


def set_attribute(node: onnx.NodeProto, key: str, value: object) -> None:
    kept = [entry for entry in node.attribute if entry.name != key]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(key, value)])


def in_mask_function(op: str, **attributes: object) -> Change:
    """Give the node of this kind in the mask's function other attributes."""

    def planted(model: onnx.ModelProto) -> None:
        for function in model.functions:
            for node in function.node:
                if node.op_type == op:
                    for key, value in attributes.items():
                        set_attribute(node, key, value)

    return planted


def lost_bias(model: onnx.ModelProto) -> None:
    del node_of(model, f"{EXPANDING}/Conv").input[2:]


def bias_of_another_layer(model: onnx.ModelProto) -> None:
    node_of(model, f"{EXPANDING}/Conv").input[2] = "backbone.layer4.2.conv.0.conv.bias"


def relu6_at(limit: float) -> Change:
    def planted(model: onnx.ModelProto) -> None:
        tensor, _ = weights_of(model, "max_val_cast")
        tensor.CopyFrom(numpy_helper.from_array(np.array(limit, np.float32), tensor.name))

    return planted


def branches_in_another_order(model: onnx.ModelProto) -> None:
    join = next(node for node in model.graph.node if node.op_type == "Concat")
    join.input[2], join.input[3] = join.input[3], join.input[2]


def insert(model: onnx.ModelProto, tensor: str, op: str, *operands: np.ndarray, **attributes: object) -> None:
    """Put a node behind a tensor of the main graph."""
    names = [f"planted/{op}/{index}" for index in range(len(operands))]
    model.graph.initializer.extend(map(numpy_helper.from_array, operands, names))
    place = next(index for index, node in enumerate(model.graph.node) if tensor in node.output)
    for node in model.graph.node:
        node.input[:] = [f"{tensor}/planted" if name == tensor else name for name in node.input]
    made = helper.make_node(op, [tensor, *names], [f"{tensor}/planted"], name=f"planted/{op}", **attributes)
    model.graph.node.insert(place + 1, made)


def in_mask(op: str, *operands: np.ndarray, before: str, is_table: bool = False, **attributes: object) -> Change:
    """Put a node behind what makes a tensor of the mask's function; a table is looked up by that tensor."""

    def planted(model: onnx.ModelProto) -> None:
        function = next(entry for entry in model.functions if entry.name == "NrdPatchDecodeMask")
        place = next(index for index, node in enumerate(function.node) if before in node.output)
        names = [f"planted{index}" for index in range(len(operands))]
        made = [
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
            for name, array in zip(names, operands, strict=True)
        ]
        function.node[place].output[0] = "planted"
        inputs = [*names, "planted"] if is_table else ["planted", *names]
        made.append(helper.make_node(op, inputs, [before], **attributes))
        for step, node in enumerate(made):
            function.node.insert(place + 1 + step, node)

    return planted


# What a hint says, by cause. A hint that has one of these names that cause.
PHRASES = {
    "colours": ("red and blue", "channels are permuted: channels 0, 1, 2"),
    "mean or deviation": ("another mean", "another standard deviation"),
    "weights": (": weight ", ": bias "),
    "attributes": (": dilations", ": pads", ": strides", ": group", ": auto_pad"),
    "activation": (": max is", ": min is", "expected Relu", "expected Clip"),
    "branches": ("inputs in the order",),
    "coordinates": ("the coordinates of", "the coordinates are", "the coordinates reach"),
    "order of W0": ("W0 takes",),
    "x and y": ("x and y swapped", "x and y are swapped"),
    "transposed": ("is transposed",),
    "biases": ("are exchanged", "is not added", "come before", "comes before", "reverse order"),
    "enlargement": ("the logits are enlarged", "the Resize"),
    "labels": ("labels are off", "labels are permuted", "classes are drawn"),
    "ties": ("ties go",),
    "constant": ("is constant", "are constant"),
    "permuted": ("channels are permuted, from",),
    "scaled": ("scaled by",),
    "raised": ("raised by",),
    "int8 scale": ("the int8 scale",),
    "not finite": ("not finite",),
    "an operation": ("is extra", "is missing"),
    "plan": ("plan's",),
}


def named_causes(found: Localisation) -> set[str]:
    text = "; ".join(found.hints)
    return {cause for cause, phrases in PHRASES.items() if any(phrase in text for phrase in phrases)}


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """Trace the trained network once: no fault is planted in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "network_program", cache(program.network_program))
        yield


@cache
def sample() -> Sample:
    return Sample(image=street_scene(3, SIZE_HW).image, restore=np.asarray, name="street")


@cache
def sound_ranges() -> dict[str, float]:
    full = select_outputs(both_outputs(), "mask")
    plan = plan_quantization(full, choose_layers(full))
    return measure_anew(full, plan.tensors, [sample().image], threads=1)


def file_with(precision: Precision, change: Change) -> onnx.ModelProto:
    """The trained network's file as an exporter with this fault writes it."""
    full = select_outputs(both_outputs(), "mask")
    change(full)
    if precision == "int8":
        plan, ranges = plan_quantization(full, choose_layers(full)), sound_ranges()
        full = insert_qdq(full, plan, {name: ranges[name.removesuffix("/planted")] for name in plan.tensors})
    return to_precision(full, precision)


def localised(file: onnx.ModelProto, mask_tolerance: float = 0.02) -> Localisation:
    return compare_stages(trained_model(), file, [sample()], mask_tolerance=mask_tolerance, threads=1)


def misread_theta(meaning: str) -> Change:
    """Let the controller predict theta in another layout."""

    def planted(model: onnx.ModelProto) -> None:
        order = dict(reversed(list(misread_orders(read_facts(model).decode))))[meaning]  # type: ignore[arg-type]
        for kind in ("weight", "bias"):
            weight(f"{CONTROLLER}.{kind}", lambda values: values[order])(model)

    return planted


def insert_in_decode(order_of: str) -> Change:
    """Let the decode read theta in another layout; what the network predicts is right."""

    def planted(model: onnx.ModelProto) -> None:
        order = dict(reversed(list(misread_orders(read_facts(model).decode))))[order_of]  # type: ignore[arg-type]
        for function in model.functions:
            for node in function.node:
                node.input[:] = ["theta_read" if name == "decode_theta" else name for name in node.input]
            made = [
                helper.make_node("Constant", [], ["theta_order"], value=numpy_helper.from_array(order)),
                helper.make_node("Gather", ["decode_theta", "theta_order"], ["theta_read"], axis=1),
            ]
            for node in reversed(made):
                function.node.insert(0, node)

    return planted


def noise(share: float, seed: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values * (1 + share * np.random.default_rng(seed).standard_normal(values.shape))


ONE = np.float32(1)

# Fault -> what is planted, the cause that is named, what its hint says.
FAULTS: dict[str, tuple[Change, set[str], str]] = {
    "red and blue": (swap_rgb, {"colours"}, "red and blue are swapped"),
    "mean in 0-1": (other_mean, {"mean or deviation"}, "another mean or standard deviation: channels 0, 1, 2"),
    "deviation x1.02": (weight("preprocessing.std", lambda v: v * 1.02), {"mean or deviation"}, "0.980·x"),
    "one deviation": (
        weight("preprocessing.std", lambda v: v * 0 + 57), {"mean or deviation"}, "another mean or standard deviation",
    ),
    "W1 written transposed": (misread_theta("W1 is transposed"), {"weights", "transposed"}, "as if W1 is transposed"),
    "W2 written as [d][K]": (misread_theta("W2 is transposed"), {"weights", "transposed"}, "as if W2 is transposed"),
    "W0 written in another order": (
        misread_theta("W0 takes the guidance before the coordinates"), {"weights", "order of W0"},
        "W0 takes the guidance before the coordinates",
    ),
    "b0 and b1 written": (misread_theta("b0 and b1 are exchanged"), {"weights", "biases"}, "b0 and b1 are exchanged"),
    "W1 read transposed": (transpose_w1_in_decode, {"transposed"}, "decodes as if W1 is transposed"),
    "W2 read as [d][K]": (insert_in_decode("W2 is transposed"), {"transposed"}, "decodes as if W2 is transposed"),
    "b0 and b1 read": (insert_in_decode("b0 and b1 are exchanged"), {"biases"}, "as if b0 and b1 are exchanged"),
    "pixel centres": (shift_coordinates, {"coordinates"}, "off by +0.50 of a step along x and +0.50 along y"),
    "half the channels zero": (
        weight(f"{EXPANDING}.weight", set_rows(np.s_[::2], 0)), {"weights"}, "rows 0, 2, 4, 6 and 188 more of 384",
    ),
    "one channel zero": (
        weight(f"{DEPTHWISE}.weight", set_rows(7, 0)), {"weights"},
        f"`{DEPTHWISE}`: weight differs in row 7 of 384: zero there",
    ),
    "lost bias": (lost_bias, {"weights"}, f"`{EXPANDING}`: bias is absent, expected a constant"),
    "bias zero": (weight(f"{EXPANDING}.bias", lambda v: v * 0), {"weights"}, f"`{EXPANDING}`: bias is zero"),
    "bias of another layer": (
        bias_of_another_layer, {"weights"}, f"`{EXPANDING}`: bias is that of `backbone.layer4.2.conv.0.conv`",
    ),
    "zero pool": (
        weight("decode_head.image_pool.1.conv.weight", lambda v: v * 0), {"weights"},
        "`decode_head.image_pool.1.conv`: weight is zero",
    ),
    "a class's bias": (
        weight(f"{CONTROLLER}.bias", set_rows(-2, 30.0)), {"weights"},
        f"`{CONTROLLER}`: bias differs in row 761 of 763 (b2 of class 9): 30 there",
    ),
    "a class's weights": (
        several(*(weight(f"{CONTROLLER}.{kind}", set_rows(np.s_[576 : 576 + 16], 0)) for kind in ("weight", "bias"))),
        {"weights"}, "rows 576–591 of 763 (W2 of class 0): zero there",
    ),
    "kernels transposed": (
        weight(f"{ATROUS}.weight", lambda v: v.swapaxes(2, 3)), {"weights"}, "weight has its kernels transposed",
    ),
    "weights x2": (weight(f"{EXPANDING}.weight", lambda v: v * 2), {"weights"}, f"`{EXPANDING}`: weight is ×2 of"),
    "noise of 5 %": (
        weight(f"{EXPANDING}.weight", noise(0.05)), {"weights"}, "off by 5.",
    ),
    "dilation 9 to 8": (
        several(*(attribute(f"{ATROUS}/Conv", key, [8] * count) for key, count in (("dilations", 2), ("pads", 4)))),
        {"attributes"}, f"`{ATROUS}`: dilations [8, 8], expected [9, 9]",
    ),
    "another padding": (
        attribute(f"{DEPTHWISE}/Conv", "pads", [0, 0, 2, 2]), {"attributes"},
        f"`{DEPTHWISE}`: pads [0, 0, 2, 2], expected [1, 1, 1, 1]",
    ),
    "ReLU6 at 3": (relu6_at(3), {"activation"}, "`backbone.conv1.act` and 5 more: max is 3, expected 6"),
    "ReLU6 at 5": (relu6_at(5), {"activation"}, "max is 5, expected 6"),
    "order of the branches": (
        branches_in_another_order, {"branches"}, "inputs in the order `decode_head.aspp_modules.2",
    ),
    "align_corners": (
        in_mask_function("Resize", coordinate_transformation_mode="align_corners"), {"enlargement"},
        "enlarged by linear (align_corners)",
    ),
    "asymmetric": (
        in_mask_function("Resize", coordinate_transformation_mode="asymmetric"), {"enlargement"},
        "enlarged by linear (asymmetric)",
    ),
    "nearest": (in_mask_function("Resize", mode="nearest"), {"enlargement"}, "enlarged by nearest (half_pixel"),
    "cubic": (in_mask_function("Resize", mode="cubic"), {"enlargement"}, "enlarged by cubic (half_pixel"),
    "labels off by one": (in_mask("Add", np.array(1, np.int64), before="index"), {"labels"}, "labels are off by +1"),
    "labels permuted": (
        in_mask("Gather", np.array([0, 3, 2, 1, *range(4, 11)]), before="index", is_table=True), {"labels"},
        "labels are permuted: Building (1) as 3, Road (3) as 1",
    ),
    "a class's logits zero": (
        in_mask("Mul", np.eye(11, dtype=np.float32)[3].reshape(1, 11, 1, 1) * -1 + 1, before="decode_logits"),
        {"constant"}, "channel 3 (Road) is constant (0)",
    ),
    "a class's logits raised": (
        in_mask("Add", np.eye(11, dtype=np.float32)[5].reshape(1, 11, 1, 1) * 9, before="decode_logits"),
        {"raised"}, "channel 5 (Tree) is raised by 9",
    ),
}  # fmt: skip


def each_in_one_precision() -> Iterator[Any]:
    """Every fault in fp32 or, one of four, in int8; `make test-all` has both of each."""
    for index, fault in enumerate(FAULTS):
        for precision in ("fp32", "int8"):
            left = () if (index % 4 == 3) is (precision == "int8") else pytest.mark.all_combinations
            yield pytest.param(fault, precision, marks=left, id=f"{fault}-{precision}")


@pytest.mark.parametrize(("fault", "precision"), list(each_in_one_precision()))
def test_a_fault_is_named_as_itself_and_as_nothing_else(fault: str, precision: Precision) -> None:
    change, causes, said = FAULTS[fault]
    found = localised(file_with(precision, change))
    assert found.first_beyond is not None
    assert said in "; ".join(found.hints)
    assert named_causes(found) == causes


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_sound_file_has_no_cause(precision: Precision) -> None:
    found = localised(file_with(precision, lambda model: None), mask_tolerance=0.05)
    assert (found.first_beyond, found.hints) == (None, ())


READ = "backbone.layer4.1.conv.0.act/Clip"
"""What `DEPTHWISE` reads."""


def stored(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Change a tensor of an int8 file, which an exporter has written rightly."""

    def planted(model: onnx.ModelProto) -> None:
        tensor = next(entry for entry in model.graph.initializer if entry.name.removesuffix("/fp16") == name)
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), tensor.name))

    return planted


def twice_row_5(values: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(values)) == 5, 2 * values, values)


IN_INT8: dict[str, tuple[Change, set[str], str]] = {
    "scale x0.25": (stored(f"{READ}/scale", lambda v: v * 0.25), {"int8 scale"}, f"`{DEPTHWISE}` reads is too small: "),
    "scale x0.5": (stored("pixels/scale", lambda v: v * 0.5), {"int8 scale"}, "of the values are clipped (±"),
    "scale x4": (stored(f"{READ}/scale", lambda v: v * 4), {"int8 scale"}, f"`{DEPTHWISE}` reads is too large: "),
    "rolled scales": (
        stored(f"{EXPANDING}.weight/scale", lambda v: np.roll(v, 3)), {"weights"},
        f"`{EXPANDING}`: weight differs in",
    ),
    "a doubled scale": (
        stored(f"{EXPANDING}.weight/scale", twice_row_5), {"weights"},
        f"`{EXPANDING}`: weight differs in row 5 of 384: ×2.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", IN_INT8)
def test_a_fault_of_quantisation_is_named_with_its_figures(fault: str) -> None:
    """The masks' tolerance is that of a file in which the fault shows; stages of int8 alone allow too much."""
    change, causes, said = IN_INT8[fault]
    file = file_with("int8", lambda model: None)
    change(file)
    found = localised(file, mask_tolerance=0.0)
    assert said in "; ".join(found.hints)
    assert named_causes(found) == causes


def test_several_causes_are_all_named_in_the_order_of_the_data() -> None:
    """The first is upstream of all others, and hides none that stands in the file or shows in its own stage."""
    changes = ("labels off by one", "W1 read transposed", "lost bias", "dilation 9 to 8", "red and blue")
    found = localised(file_with("fp32", several(*(FAULTS[name][0] for name in changes))))
    starts = (
        "red and blue are swapped",
        f"encoder C4: `{EXPANDING}`: bias is absent",
        f"theta: `{ATROUS}`: dilations",
        f"theta: `{ATROUS}`: pads",
        "logits: the file decodes as if W1 is transposed",
        "mask: labels are off by +1",
    )
    assert len(found.hints) == len(starts)
    assert all(hint.startswith(start) for hint, start in zip(found.hints, starts, strict=True))


@pytest.mark.parametrize(
    ("seed", "precision"),
    [
        (0, "fp32"),
        (1, "fp32"),
        (2, "int8"),
        *(pytest.param(*left, marks=pytest.mark.all_combinations) for left in ((0, "int8"), (1, "int8"), (2, "fp32"))),
    ],
)
def test_random_damage_of_a_stage_has_no_other_cause(seed: int, precision: Precision) -> None:
    """A node that is no module's multiplies the channels of a feature, some by zero: only that may be said of it."""
    rng = np.random.default_rng(seed)
    tensor = ("backbone.layer3.1.conv.2.conv/Conv", "backbone.layer7.0.conv.2.conv/Conv", "guidance")[seed]
    channels = trained_channels(tensor)
    factors = np.exp(rng.normal(0, 1, channels)) * (rng.random(channels) > 0.3)
    factor = factors.reshape(1, -1, 1, 1).astype(np.float32)
    found = localised(file_with(precision, lambda model: insert(model, tensor, "Mul", factor)))
    assert named_causes(found) <= {"an operation", "scaled", "constant"}


def test_what_c4_takes_over_from_c1_is_no_cause() -> None:
    """Where the file tells why C1 is wrong, C4 is computed from it; otherwise C1 itself tells."""
    want = predict_stages(trained_model(), sample().image)
    lost = np.arange(len(want["c4"]))[:, None, None] % 7 > 0
    got = {**want, "c1": want["c1"] * 2, "c4": want["c4"] * lost}
    tolerances = {"tolerance": TOLERANCES["fp32"], "pixels": PREPROCESSING}
    for known in ([Finding(stage="c1", text="its bias")], []):
        file = file_with("fp32", lambda model: None)
        found = causes_in_data(file, trained_model(), sample().image, want, got, known, **tolerances)
        assert "c4" not in {finding.stage for finding in found}


def trained_channels(tensor: str) -> int:
    node = next(node for node in both_outputs().graph.node if tensor in node.output)
    weights = next(entry for entry in both_outputs().graph.initializer if entry.name == node.input[1])
    return int(weights.dims[0])
