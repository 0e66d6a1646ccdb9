"""The decode's bench without a GPU: its checks, layouts and rotation on the binding for CPU tensors, and a whole run.

Only the clock is played; see on_cpu.py for the kernels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nrd_trt.benchmarking import decode_benchmark as pipeline
from nrd_trt.benchmarking.decode_benchmark import DecodeBenchRequest, benchmark_decode, chosen_cases, described
from nrd_trt.benchmarking.decode_floors import DecodeCase
from nrd_trt.benchmarking.decode_report import markdown, text_lines
from nrd_trt.cli.main import app
from nrd_trt.decode import bench
from nrd_trt.decode.bench import TOLERANCE, Subject, laid_out, random_inputs
from nrd_trt.decode.graph_timing import RUNS, runs_in_graph
from nrd_trt.errors import MissingDependencyError
from nrd_trt.model import decode_inputs
from nrd_trt.specs import DecodeSpec
from tests.decode.on_cpu import load_binding, needs_compiler

SPEC = DecodeSpec(num_classes=40)
GPU = {
    "name": "Pretender", "compute_capability": "9.0", "multiprocessors": 132, "l2_bytes": 100_000,
    "memory_bytes": 1 << 34, "clock_max_mhz": 1980.0, "torch": "2.13.0", "cuda": "13.0",
}  # fmt: skip

pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def binding() -> None:
    load_binding()


def subject(**options: Any) -> Subject:
    inputs = random_inputs(SPEC, options.pop("batch", 2), 2, 2, device="cpu")
    defaults: dict[str, Any] = {"precision": "fp16", "layout": "pitch_8", "cache_bytes": 0, "device": "cpu"}
    return Subject(SPEC, inputs, **{**defaults, **options})


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "pitch_8"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_kernel_passes(precision: Any, layout: Any) -> None:
    case = subject(precision=precision, layout=layout, batch=1)
    variants = case.variants()
    assert variants == ["auto", "generic", "simt", "simt_retained"] if precision == "fp32" else len(variants) == 6
    for variant, check in case.check(variants).items():
        assert check.passed, (variant, check)
        assert (check.logits_error is None) == variant.endswith("retained")
        assert check.mask_different < 1e-3


def wrong_mask(launch: Callable[..., None]) -> Callable[..., None]:
    def spoiled(theta: Tensor, guidance: Tensor, mask: Tensor, *rest: Any) -> None:
        launch(theta, guidance, mask, *rest)
        mask[-1, 5, 7] ^= 1

    return spoiled


def wrong_logits(launch: Callable[..., None]) -> Callable[..., None]:
    def spoiled(theta: Tensor, guidance: Tensor, logits: Tensor, *rest: Any) -> None:
        launch(theta, guidance, logits, *rest)
        logits[-1, 3, 2, 1] *= 1.01

    return spoiled


def unwritten(launch: Callable[..., None]) -> Callable[..., None]:
    def spoiled(theta: Tensor, guidance: Tensor, output: Tensor, *rest: Any) -> None:
        result = torch.empty_like(output)
        launch(theta, guidance, result, *rest)
        output[..., :-1] = result[..., :-1]

    return spoiled


def pruned_otherwise(launch: Callable[..., None]) -> Callable[..., None]:
    def spoiled(theta: Tensor, guidance: Tensor, mask: Tensor, *rest: Any) -> None:
        launch(theta, guidance, mask, *rest)
        if not rest[-1]:
            mask[0, 0, 0] ^= 1

    return spoiled


@pytest.mark.parametrize(
    ("spoil", "fields"),
    [
        (wrong_mask, {"mask_gap"}),
        (wrong_logits, {"logits_error"}),
        (unwritten, {"mask_gap", "logits_error"}),
        (pruned_otherwise, {"prune_equal"}),
    ],
)
def test_a_wrong_kernel_does_not_pass(spoil: Any, fields: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ops = torch.ops.nrd
    for name in ("launch_decode_mask", "launch_decode"):
        if name == "launch_decode_mask" or fields & {"logits_error"}:
            if spoil is not wrong_logits or name == "launch_decode":
                monkeypatch.setattr(ops, name, spoil(getattr(ops, name)))
    check = subject(precision="fp32").check(["auto"])["auto"]
    assert not check.passed
    bad = {"mask_gap"} if check.mask_gap > 2 * TOLERANCE else set()
    bad |= {"logits_error"} if check.logits_error is None or check.logits_error > TOLERANCE else set()
    bad |= {"prune_equal"} if not check.prune_equal else set()
    assert bad == fields


def test_differences_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    case = subject(precision="fp32")
    assert case.check(["auto"])["auto"].mask_different == 0
    monkeypatch.setattr(torch.ops.nrd, "launch_decode_mask", wrong_mask(torch.ops.nrd.launch_decode_mask))
    assert case.check(["auto"])["auto"].mask_different == 1 / (2 * 64 * 64)


def test_what_was_there_before_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that writes nothing leaves the results of the one before it, unless they are poisoned."""
    case = subject(precision="fp32")
    assert case.check(["auto"])["auto"].passed
    monkeypatch.setattr(torch.ops.nrd, "launch_decode_mask", lambda *_: None)
    assert case.check(["auto"])["auto"].mask_different == 1


def test_inputs_outgrow_the_cache() -> None:
    one = subject()
    assert one.slots == 2
    many = subject(cache_bytes=10 * one.moved_bytes)
    assert many.slots == 40
    addresses = {tensor.data_ptr() for pair in many._inputs for tensor in pair} | {m.data_ptr() for m in many._masks}
    assert len(addresses) == 3 * 40


def test_bytes_are_those_of_the_floor() -> None:
    spec_case = DecodeCase(size_hw=(64, 64), num_classes=40, batch=2, precision="fp16")
    assert subject().moved_bytes == spec_case.moved_bytes
    assert (
        subject(precision="fp32").moved_bytes
        == DecodeCase(size_hw=(64, 64), num_classes=40, batch=2, precision="fp32").moved_bytes
    )


def test_layouts_hold_the_same_values() -> None:
    tensor = torch.randn(2, 5, 3, 4)
    layouts = {name: laid_out(tensor, name) for name in ("nchw", "channels_last", "pitch_8")}
    assert all(torch.equal(other, tensor) for other in layouts.values())
    assert {name: other.stride() for name, other in layouts.items()} == {
        "nchw": (60, 12, 4, 1), "channels_last": (60, 1, 20, 5), "pitch_8": (96, 1, 32, 8),
    }  # fmt: skip


def test_mixed_cells_are_counted() -> None:
    """Two patches of one class each, side by side: the one column of cells between them is mixed."""
    theta = torch.zeros(1, SPEC.theta_channels, 1, 2)
    theta[0, -1, 0, 1] = 1
    inputs = theta, torch.zeros(1, 16, 8, 16), torch.zeros(8), torch.zeros(8)
    case = Subject(SPEC, inputs, "fp32", "nchw", cache_bytes=0, device="cpu")
    assert case.mixed_cells() == pytest.approx(1 / 15)


def test_graphs_hold_enough_runs() -> None:
    assert runs_in_graph(10.0, 20) == RUNS
    assert runs_in_graph(10.0, 30) == 120  # whole rounds
    assert runs_in_graph(10.0, 200) == 200
    assert 50 <= runs_in_graph(1900.0, 2) < RUNS
    assert runs_in_graph(1e6, 2) == 2


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A GPU that is played: operators run on the CPU and every run takes a made-up time. Returns slots and replays."""
    timed: list[tuple[int, int]] = []

    def play(call: Callable[[int], object], *, slots: int, replays: int) -> list[float]:
        timed.append((slots, replays))
        call(slots - 1)
        return [10.0 + len(timed) % 7] * replays

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend="eager", **options))
    monkeypatch.setattr(bench, "time_in_graph", play)
    monkeypatch.setattr(bench, "gpu_facts", lambda: GPU)
    monkeypatch.setattr(bench, "copy_bandwidth", lambda replays: [3e12] * replays)
    monkeypatch.setattr(bench, "Subject", partial(Subject, device="cpu"))
    monkeypatch.setattr(bench, "random_inputs", partial(random_inputs, device="cpu"))
    predict = decode_inputs.predict_decode_inputs
    monkeypatch.setattr(decode_inputs, "predict_decode_inputs", lambda m, i, device: predict(m, i, device="cpu"))
    monkeypatch.setattr(pipeline, "open_probe", lambda: (None, "no probe"))
    for name, value in (
        ("_SHAPES", (((32, 64), 19), ((32, 32), 40))),
        ("_TRAINED_SHAPES", ((64, 64),)),
        ("_BATCHES", (1, 2)),
        ("_PIXEL_SIZES", ((32, 32), (32, 64), (64, 64))),
        ("_CLASSES", (2, 5, 9, 11)),
    ):
        monkeypatch.setattr(pipeline, name, value)
    return timed


CASE_KEYS = {
    "size", "num_classes", "batch", "precision", "theta", "mixed_cells", "checks", "kernels", "fastest", "logits_us",
    "floors", "baselines",
}  # fmt: skip


def test_a_whole_run(machine: list[tuple[int, int]]) -> None:
    said: list[str] = []
    result = benchmark_decode(DecodeBenchRequest(command="the command", announce=said.append))
    json.loads(json.dumps(result, allow_nan=False))
    assert result["passed"]
    assert [described(case) for case in chosen_cases(quick=False)] == [line for line in said if "theta" in line]
    assert len(result["cases"]) == 12
    for case in result["cases"]:
        assert case.keys() == CASE_KEYS
        assert set(case["checks"]) == {row["kernel"] for row in case["kernels"]}
        assert [row["layout"] for row in case["kernels"] if row["kernel"] == "auto"] == [
            "pitch_8",
            "channels_last",
            "nchw",
        ]
        assert set(case["baselines"]) == (set() if case["theta"] == "trained" else {"authors", "matmul", "compiled"})
        assert all(row["agreement"] > 0.9 for row in case["baselines"].values())
    trained = [case for case in result["cases"] if case["theta"] == "trained"]
    assert {case["num_classes"] for case in trained} == {11}
    assert max(case["mixed_cells"] for case in trained) < min(
        case["mixed_cells"] for case in result["cases"] if case["theta"] == "random"
    )
    assert [(line["over"], line["at"]) for line in result["lines"]] == [
        ("pixels", "K=19"), ("pixels", "K=150"), ("classes", "1024x2048"),
    ]  # fmt: skip
    assert {replays for _, replays in machine} == {30, 10}
    assert 1 in {slots for slots, _ in machine}  # warm and empty
    for text in ("\n".join(text_lines(result)), markdown(result)):
        assert all(word in text for word in ("the command", "Pretender", "no probe", "64x64 K=11 ×2 bf16 trained"))


def test_a_quick_run_is_shorter(machine: list[tuple[int, int]]) -> None:
    result = benchmark_decode(DecodeBenchRequest(quick=True))
    assert [(case["batch"], case["precision"]) for case in result["cases"]] == [(1, "fp16")] * 3
    assert [case["baselines"] for case in result["cases"]] == [{}, {}, {}]  # none of these is 1024x2048
    assert [line["over"] for line in result["lines"]] == ["pixels", "classes"]


def test_wrong_kernels_are_not_timed(machine: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.nrd, "launch_decode_mask", wrong_mask(torch.ops.nrd.launch_decode_mask))
    result = benchmark_decode(DecodeBenchRequest(quick=True))
    assert not result["passed"]
    for case in result["cases"]:
        assert case["checks"]
        assert (case["kernels"], case["fastest"], case["logits_us"]) == ([], None, None)
    assert result["targets"] == [] or all("pixels" in target["name"] for target in result["targets"])
    assert "FAILED" in "\n".join(text_lines(result))


def test_baselines_that_cannot_run_say_why(machine: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    case, play = subject(), bench.time_in_graph

    def fail(error: Exception) -> Callable[..., Any]:
        def raise_it(*_: Any, **__: Any) -> None:
            raise error

        return raise_it

    monkeypatch.setattr(bench, "time_in_graph", fail(torch.OutOfMemoryError("Tried to allocate 10 GiB\nand more")))
    assert case.time_baseline("authors", replays=1) == "OutOfMemoryError: Tried to allocate 10 GiB"
    monkeypatch.setattr(bench, "time_in_graph", fail(torch.AcceleratorError("illegal memory access")))
    with pytest.raises(torch.AcceleratorError):
        case.time_baseline("matmul", replays=1)
    monkeypatch.setattr(bench, "time_in_graph", play)
    assert len(case.time_baseline("matmul", replays=4)) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(MissingDependencyError, match="needs an NVIDIA GPU"):
        benchmark_decode(DecodeBenchRequest())


def run(*arguments: str) -> Any:
    from typer.testing import CliRunner

    return CliRunner().invoke(app, ["benchmark", *arguments])


def test_command_line(machine: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "decode.md"
    done = run("--decode", "--quick", "--json", "--markdown", str(page))
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["command"] == "python scripts/benchmark.py --decode --quick"
    assert page.read_text() == markdown(result)
    again = run("--decode", "--quick", "--markdown", str(page))
    assert again.exit_code == 2
    assert "exists" in again.stderr
    monkeypatch.setattr(torch.ops.nrd, "launch_decode_mask", wrong_mask(torch.ops.nrd.launch_decode_mask))
    failed = run("--decode", "--quick", "-q", "--force", "--markdown", str(page))
    assert failed.exit_code == 1
    assert "FAILED" in failed.stdout
    assert "FAILED" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decode", "model.nrd"], "leave out targets"),
        (["--decode", "--batch", "2", "--size", "64x64"], "leave out --batch, --size"),
        (["--decode", "--runner", "torch"], "leave out targets and --runner"),
        (["--quick", "model.nrd"], "--quick and --markdown"),
        (["--markdown", "x.md", "model.nrd"], "--quick and --markdown"),
        ([], "expected a bundle or a checkpoint"),
    ],
)
def test_command_line_refuses(arguments: list[str], message: str) -> None:
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert message in refused.stderr
