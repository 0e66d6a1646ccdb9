"""`benchmark --decode` on a GPU that is played: the kernels run on the CPU, and every run takes a made-up time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from nrd_trt.benchmarking import calls, decode
from nrd_trt.benchmarking.decode import DecodeCase, benchmark_decode, chosen_cases
from nrd_trt.cli.main import app
from nrd_trt.decode import bench
from nrd_trt.decode.bench import Subject, TorchGpu, random_inputs
from nrd_trt.errors import ConfigError, MissingDependencyError
from nrd_trt.machine.clocks import DeviceLog, Reading
from nrd_trt.model import stages
from tests.decode.on_cpu import load_binding, needs_compiler
from tests.decode.test_bench import MASK, flip, spoiled

GPU = TorchGpu(name="Pretender", compute_capability="9.0", l2_bytes=100_000, torch="2.13.0", cuda="13.0")
CASES = (
    DecodeCase(size_hw=(32, 64), num_classes=19),
    DecodeCase(size_hw=(32, 32), num_classes=40, batch=2, precision="bf16"),
    DecodeCase(size_hw=(64, 64), num_classes=11, theta="trained"),
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    load_binding()
    runs = iter(range(1000))

    def play(call: Callable[[int], object], *, slots: int, replays: int) -> list[float]:
        call(slots - 1)
        return [10.0 + next(runs) % 7] * replays

    compile_, predict = torch.compile, stages.predict_decode_inputs
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend="eager", **options))
    monkeypatch.setattr(bench, "time_in_graph", play)
    monkeypatch.setattr(bench, "find_gpu", lambda: GPU)
    monkeypatch.setattr(bench, "Subject", partial(Subject, device="cpu"))
    monkeypatch.setattr(bench, "random_inputs", partial(random_inputs, device="cpu"))
    monkeypatch.setattr(stages, "predict_decode_inputs", lambda m, i, device: predict(m, i, device="cpu"))
    monkeypatch.setattr(calls, "open_probe", lambda: (None, "no probe"))


@pytest.fixture
def wrong_kernels(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled(MASK, monkeypatch, flip)


def cells(page: str, start: str) -> list[str]:
    """The row of a Markdown table that begins with these cells."""
    (line,) = (line for line in page.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


@needs_compiler
@pytest.mark.usefixtures("machine")
def test_a_whole_run() -> None:
    said: list[str] = []
    result = benchmark_decode(cases=CASES, command="the command", on_stage=said.append)
    assert result.passed
    assert said == [str(case) for case in CASES]
    for case in result.cases:
        assert [row.kernel for row in case.kernels] == list(case.checks)
        assert case.fastest is not None
        assert case.fastest.us == min(row.us for row in case.kernels)
        assert set(case.baselines) == (set() if case.theta == "trained" else {"authors", "compiled"})
        assert all(row.agreement is not None and row.agreement > 0.9 for row in case.baselines.values())
    page = result.markdown()
    assert all(word in page for word in ("the command", "Pretender", "no probe", "64x64 K=11 ×1 fp16 trained"))
    first = json.loads(json.dumps(result.to_dict(), allow_nan=False))["cases"][0]
    assert first.keys() == {
        "size", "num_classes", "batch", "precision", "theta", "checks", "kernels", "fastest", "baselines",
    }  # fmt: skip
    assert first["checks"]["auto"]["passed"] is True
    assert first["baselines"]["authors"].keys() == {"us", "agreement", "skipped"}


@needs_compiler
@pytest.mark.usefixtures("wrong_kernels")
def test_wrong_kernels_are_not_timed() -> None:
    result = benchmark_decode(cases=CASES, quick=True)
    assert not result.passed
    for case in result.cases:
        assert case.checks
        assert (case.kernels, case.fastest, case.baselines) == ((), None, {})  # none of these is 1024x2048
    assert "FAILED" in result.markdown()


def test_cases() -> None:
    whole, quick = chosen_cases(quick=False), chosen_cases(quick=True)
    assert (len(whole), len(set(map(str, whole)))) == (24, 24)
    assert {(case.batch, case.precision) for case in whole} == {(1, "fp16"), (1, "bf16"), (8, "fp16"), (8, "bf16")}
    assert {(case.batch, case.precision) for case in quick} == {(1, "fp16")}
    assert [case.theta for case in quick] == ["random"] * 4 + ["trained"]


def made_up(**changes: Any) -> decode.DecodeBenchmark:
    right = bench.Check(
        logits_error=None, mask_different=0, mask_gap=0, prune_equal=True, repeat_equal=True, passed=True
    )
    case = DecodeCase(
        size_hw=(1024, 2048),
        num_classes=19,
        checks={"tensor_core": replace(right, mask_gap=0.5, prune_equal=False, passed=False), "simt": right},
        kernels=(decode.KernelTime(kernel="simt", us=10, p10_us=9, p90_us=11),),
        baselines={"authors": bench.Baseline(us=250.0), "compiled": bench.Baseline(skipped="no room: 10 | 20 GiB")},
    )
    fields = {"gpu": GPU, "driver": None, "command": "it", "quick": True, "device": None, "notes": (), "cases": (case,)}
    return decode.DecodeBenchmark(**{**fields, "passed": False, **changes})  # type: ignore[arg-type]


def test_the_table() -> None:
    reading = Reading(clock_mhz=1755.4, throttle=("power cap",))
    result = made_up(device=DeviceLog(before=reading, during=[reading], after=reading), notes=("a note",))
    page, case = result.markdown(), "1024x2048 K=19 ×1 fp16 random"
    assert page.startswith("```bash\nit\n```\n")
    assert "Pretender (compute capability 9.0), driver unknown, CUDA 13.0" in page
    assert "clock 1755 MHz, throttled: power cap" in page
    assert "- a note\n" in page
    wrong = cells(page, f"| {case} | tensor_core")
    assert wrong[2].startswith("FAILED: Check(") and "mask_gap=0.5, prune_equal=False" in wrong[2]
    assert wrong[3:] == ["–", "–", "–", "250.00", "no room: 10 \\| 20 GiB"]
    assert cells(page, f"| {case} | simt ") == [
        case, "simt", "passed", "10.00", "9.00", "11.00", "250.00 (25.0×)", "no room: 10 \\| 20 GiB",
    ]  # fmt: skip
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and len({len(line) for line in rows}) == 1
    assert "throttled" not in made_up().markdown()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(MissingDependencyError, match="needs an NVIDIA GPU"):
        benchmark_decode()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["benchmark", *arguments])


@needs_compiler
@pytest.mark.usefixtures("machine")
def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    few: Callable[..., Sequence[DecodeCase]] = lambda quick: CASES[: 1 if quick else 3]  # noqa: E731
    monkeypatch.setattr(decode, "chosen_cases", few)
    page = tmp_path / "decode.md"
    done = run("--decode", "--quick", "--json", "--markdown", str(page))
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.keys() == {
        "gpu", "driver", "versions", "command", "quick", "device", "notes", "cases", "passed",
    }  # fmt: skip
    assert (result["command"], result["quick"], result["passed"]) == ("nrd-trt benchmark --decode --quick", True, True)
    assert result["versions"].keys() == {"nrd_trt", "torch", "cuda"}
    assert page.read_text().startswith("```bash\nnrd-trt benchmark --decode --quick\n")
    again = run("--decode", "--quick", "--markdown", str(page))
    assert again.exit_code == 2
    assert "exists" in again.stderr
    request.getfixturevalue("wrong_kernels")
    failed = run("--decode", "--quick", "-q", "--force", "--markdown", str(page))
    assert failed.exit_code == 1
    assert "FAILED" in failed.stdout
    assert "FAILED" in page.read_text()


def test_the_device_is_chosen_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose_device(device: int | str | None) -> None:
        raise ConfigError(f"device={device}: expected a GPU that CUDA shows here.")

    monkeypatch.setattr(decode, "choose_device", choose_device)
    refused = run("--decode", "--device", "3")
    assert (refused.exit_code, refused.stderr) == (2, "error: --device 3: expected a GPU that CUDA shows here.\n")


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
