"""OpenVINO behind the Runner contract: what layers are executed in is read back, and what is no evidence is refused."""

from __future__ import annotations

import builtins
import re
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import pytest

from nrd_trt.decode.function import mask_function, mask_node
from nrd_trt.errors import ConfigError, MissingDependencyError, RunnerError
from nrd_trt.graph.cpu import has_16_bits, widen, with_ending
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.tensors import copy_model
from nrd_trt.machine import host
from nrd_trt.machine.host import Machine, host_facts, instructions
from nrd_trt.runtime.openvino_runner import OpenVinoRunner
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.select import RunOptions, cpu_runner
from nrd_trt.specs import DecodeSpec, Precision
from tests.helpers import agreement, feed, quantized, small_export, small_int8

pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'nrd-trt[openvino]'")
SIZE = (1, 128, 256)
HAS_BF16 = bool({"avx512_bf16", "amx_bf16"} & set(instructions(Machine())))


def test_fp32_is_executed_as_it_is_typed_and_says_so() -> None:
    with OpenVinoRunner(small_export(), threads=1, types="exact") as runner:
        assert (runner.arithmetic, set(runner.executed.values())) == ("native", {"fp32"})
        assert sum(name.startswith("decode/MatMul") for name in runner.executed) == 4
        mask = runner.infer(feed("uint8", *SIZE))["mask"]
    with OrtRunner(small_export(), threads=1) as runner:
        assert agreement(mask, runner.infer(feed("uint8", *SIZE))["mask"]) >= 0.9999


def test_arithmetic_is_what_was_executed_and_not_what_was_asked_for() -> None:
    with OpenVinoRunner(small_export(), threads=1) as runner:
        found = set(runner.executed.values())
        assert runner.arithmetic == ("bf16" if "bf16" in found else "native")
        assert ("bf16" in found) == HAS_BF16


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_types_that_it_does_not_execute_are_no_evidence(precision: Precision) -> None:
    file = small_int8() if precision == "int8" else to_precision(small_export(), precision)
    told = (
        r"^runner='openvino': executes \d+ of \d+ layers of the \w+ file in another type, such as '.+' in \w+ instead"
    )
    # A processor with instructions for fp16 executes those layers, and then the decode's fp32 products in fp16 as well.
    with pytest.raises(ConfigError, match=told + r" of (fp16|fp32).*; set .*runner='onnxruntime'"):
        OpenVinoRunner(file, threads=1, types="exact").__enter__()
    with OpenVinoRunner(file, threads=1, types="file") as runner:
        kinds = Counter(runner.executed.values())
        assert runner.arithmetic == "fp32"
        assert kinds.keys() == ({"int8", "fp32"} if precision == "int8" else {"fp32"})


def test_int8_beside_fp32_is_evidence() -> None:
    file = quantized(small_export())
    with OpenVinoRunner(file, threads=1, types="exact") as runner:
        assert runner.arithmetic == "native"
        assert set(runner.executed.values()) == {"int8", "fp32"}


@pytest.mark.skipif(not HAS_BF16, reason="the processor has no instructions for bfloat16")
def test_bf16_is_executed_beside_fp32_as_the_file_says() -> None:
    with OpenVinoRunner(to_precision(small_export(), "bf16"), threads=1, types="exact") as runner:
        assert (runner.arithmetic, set(runner.executed.values())) == ("native", {"bf16", "fp32"})


def test_layers_are_timed_by_stage() -> None:
    image = feed("uint8", *SIZE)
    for make in (OpenVinoRunner, OrtRunner):
        with make(small_export(), threads=1) as runner:
            before = runner.infer(image)
            times = runner.layer_times(image, 2)
            assert all(layer.ms >= 0 for layer in times) and sum(layer.ms for layer in times) > 0
            for stage in ("decode/", "resize/", "argmax/"):
                assert any(stage in layer.name for layer in times)
            assert np.array_equal(before["mask"], runner.infer(image)["mask"])


@pytest.mark.parametrize("encoding", ["uint8", "u8x4"])
@pytest.mark.parametrize(
    ("ending", "shape", "size"),
    [("filters", "static", SIZE), ("filters", "dynamic", (2, 64, 96)), ("phases", "dynamic", (2, 64, 96))],
)
def test_every_ending_gives_the_same_masks(ending: Any, shape: str, size: Any, encoding: Any) -> None:
    """ONNX Runtime runs both here, and the form of the file by `onnxruntime` itself."""
    import onnxruntime

    file, image = small_export("uint8", shape, encoding), feed("uint8", *size)
    other, masks = with_ending(file, ending), []
    for model in (file, other):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        masks.append(session.run(["mask"], image)[0])
    assert np.array_equal(*masks) and len(np.unique(masks[0])) > 1
    groups = {entry.i for node in other.functions[0].node for entry in node.attribute if entry.name == "group"}
    assert groups == ({4 * 8} if shape == "static" else set())  # of 32x32 pixels


@pytest.mark.parametrize("ending", ["filters", "phases"])
def test_a_decode_that_is_not_what_its_call_says_keeps_its_form(ending: Any) -> None:
    """Another form would hide the fault, and has no place in a file whose parts are called otherwise."""
    file = copy_model(small_export())
    next(node for node in file.functions[0].node if node.op_type == "Relu").op_type = "Abs"
    assert with_ending(file, ending).functions[0] == file.functions[0]
    renamed = copy_model(small_export())
    for node in renamed.functions[0].node:
        for names in (node.input, node.output):
            names[:] = [{"z2": "other"}.get(name, name) for name in names]
    assert with_ending(renamed, ending).functions[0] == renamed.functions[0]
    sound = small_export()
    assert with_ending(sound, ending).functions[0] != sound.functions[0]


@pytest.mark.parametrize(("classes", "patch", "sizes"), [(19, 8, ("B", "h", "w")), (5, 16, (2, 2, 3))])
def test_every_ending_breaks_ties_as_the_file_says(classes: int, patch: int, sizes: tuple[str | int, ...]) -> None:
    """Of small whole numbers every sum is exact in any order, and many pixels have several largest logits."""
    import onnxruntime
    import openvino

    rng = np.random.default_rng(5)
    spec = DecodeSpec(num_classes=classes, hidden=4, guidance_channels=2, patch=patch, upsample=32 // patch)
    theta = rng.integers(-1, 2, (2, spec.theta_channels, 2, 3)).astype(np.float32)
    guidance = rng.integers(-2, 3, (2, 2, 2 * patch, 3 * patch)).astype(np.float32)
    tables = [np.arange(patch, dtype=np.float32) / patch] * 2
    value = onnx.helper.make_tensor_value_info
    pixels = [f"{patch}{side}" if isinstance(side, str) else patch * side for side in sizes[1:]]
    graph = onnx.helper.make_graph(
        [mask_node(spec, *tables, "classes", mask_type="int32")],
        "decode",
        [value("theta", 1, [sizes[0], theta.shape[1], *sizes[1:]]), value("guidance", 1, [sizes[0], 2, *pixels])],
        [value("classes", 6, None)],
    )
    opsets = [onnx.helper.make_opsetid(*entry) for entry in (("", 19), ("nrd", 1))]
    functions = [mask_function(spec, *tables, "int32")]
    file = onnx.helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9)
    sessions = [
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for model in (file, with_ending(file, "filters"))
    ]
    (want,), (filtered,) = (session.run(None, {"theta": theta, "guidance": guidance}) for session in sessions)
    assert np.array_equal(filtered, want)
    flat = onnx.inliner.inline_local_functions(with_ending(file, "phases"))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(flat.SerializeToString(), b""), "CPU", settings)
    got = compiled({"theta": theta, "guidance": guidance})[0]
    assert np.array_equal(got, want) and len(np.unique(got)) > 1


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_the_twin_has_the_files_weights_and_rounds_nothing(precision: Precision) -> None:
    file = small_int8() if precision == "int8" else to_precision(small_export(), precision)
    twin, image = widen(file), feed("uint8", *SIZE)
    assert has_16_bits(file) and not has_16_bits(twin)
    with OrtRunner(file, threads=1, twin=True) as fast, OrtRunner(twin, threads=1) as plain:
        assert (fast.arithmetic, plain.arithmetic) == ("fp32", "native")
        logits = fast.infer(image)["logits"]
        assert np.array_equal(logits, plain.infer(image)["logits"])
    with OrtRunner(file, threads=1) as rounding:
        assert rounding.arithmetic == "simulated"
        assert not np.array_equal(logits, rounding.infer(image)["logits"])
    assert not np.array_equal(logits, logits.astype(np.float16))  # not even at the end


@pytest.mark.parametrize(
    ("runner", "precision", "has", "faithful", "name", "types"),
    [
        ("auto", "int8", "avx512_vnni", False, "openvino", "file"),
        ("auto", "int8", "amx_int8", False, "openvino", "file"),
        ("auto", "int8", "avx2", False, "onnxruntime", None),
        ("auto", "int8", "asimddp", False, "onnxruntime", None),
        ("auto", "int8", "avx512_vnni", True, "onnxruntime", None),
        ("auto", "bf16", "avx512_bf16", False, "openvino", "file"),
        ("auto", "bf16", "avx512_vnni", False, "onnxruntime", None),
        ("auto", "fp32", "amx_bf16", False, "onnxruntime", None),
        ("auto", "fp16", "amx_bf16", False, "onnxruntime", None),
        ("openvino", "fp32", "avx2", False, "openvino", "fastest"),
        ("openvino", "fp32", "amx_bf16", True, "openvino", "exact"),
        ("onnxruntime", "int8", "amx_int8", False, "onnxruntime", None),
    ],
)
def test_which_runner_a_cpu_gets(
    runner: Any, precision: Any, has: str, faithful: bool, name: str, types: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "instructions", lambda machine: (has,))
    file = small_int8() if precision == "int8" else to_precision(small_export(), precision)
    made = cpu_runner(file, read_facts(file), RunOptions(runner=runner, faithful=faithful))
    assert (made.name, getattr(made, "_types", None)) == (name, types)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "openvino":
            raise ImportError("no openvino")
        return real(name, *rest)

    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingDependencyError, match=re.escape("pip install 'nrd-trt[openvino]'")):
        OpenVinoRunner(small_export()).__enter__()
    monkeypatch.setattr(host, "instructions", lambda machine: ("amx_int8",))
    assert cpu_runner(small_int8(), read_facts(small_int8()), RunOptions()).name == "onnxruntime"


def test_a_file_that_openvino_refuses() -> None:
    model = to_precision(small_export("uint8", "dynamic"), "fp32")
    model.graph.node[3].op_type = "NoSuchOperator"
    with pytest.raises(RunnerError, match=r"^openvino: cannot load the model: "):
        OpenVinoRunner(model).__enter__()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n", ("avx2", "avx512f", "avx512_vnni", "amx_int8")),
        ("Features\t: fp asimd asimdhp asimddp\n", ("asimdhp", "asimddp")),
        ("", ()),
    ],
)
def test_instructions_are_the_kernels(text: str, expected: tuple[str, ...], tmp_path: Any) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(text)
    machine = Machine(root=tmp_path)
    assert instructions(machine) == host_facts(machine).instructions == expected


@pytest.mark.parametrize(("has", "exact"), [("avx2", True), ("avx512_vnni", False), ("amx_int8", False)])
def test_integers_do_not_saturate_where_the_processor_has_no_instructions_for_them(
    has: str, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where it has, its kernels are not given up, which are several times as fast."""
    monkeypatch.setattr(host, "instructions", lambda machine: (has,))
    with OrtRunner(small_int8(), threads=1) as runner:
        options = runner._session.get_session_options()
    try:
        found = options.get_session_config_entry("session.x64quantprecision")
    except RuntimeError:  # it is not set
        found = None
    assert found == ("1" if exact else None)


def test_threads_of_onnx_runtime_stop_between_calls() -> None:
    """Spinning on for a next call, they would take the cores from another runner, or from whatever reads the mask."""
    image = feed("uint8", *SIZE)
    with OrtRunner(small_export(), threads=2) as runner:
        for _ in range(3):
            runner.infer(image)
        start = time.process_time()
        time.sleep(0.1)
        assert time.process_time() - start < 0.01
