"""The self-test: on the fake driver as a whole, then each of its promises with parts that are quick."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import nrd_trt
from nrd_trt.errors import ConfigError, MissingDependencyError, RunnerError
from nrd_trt.machine import device, libcuda
from nrd_trt.machine.doctor import DoctorReport
from nrd_trt.machine.findings import Row
from nrd_trt.proving import child, parts, selftest
from nrd_trt.proving.child import run_part
from nrd_trt.proving.parts import NotRunError, Part
from nrd_trt.proving.record import SelfTest
from tests.artefacts import listing, needs_rtx
from tests.cli.conftest import Invoke, check_refused, one_object
from tests.runtime.fake_cuda import HEADERS, SOURCE, complaints_of_gcc, library_folder
from tests.serving.waiting import until

MACHINE = DoctorReport(rows=(Row("Python", "ok", "3.12"),), abilities=())
PASSES = """
import json, sys
with open(sys.argv[1], "w") as file:
    json.dump({"result": "passed", "figures": {"gpu": "Orin", "p50_ms": 1.25}}, file)
"""
LAST_WORDS = "import os, sys; print('the last words', sys.argv[1]); sys.stdout.flush(); "
Codes = Mapping[str, tuple[str, tuple[str, ...]]]
"""Code of a part's process, which finds its answer's path in ``sys.argv[1]``, and what the part needs; by name."""


@pytest.fixture
def make_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Codes], None]:
    """Put other parts in the place of the real ones; nothing of the package is imported in their processes."""

    def make(codes: Codes) -> None:
        def command(name: str, folder: Path, answer: Path) -> list[str]:
            return [sys.executable, "-I", "-S", "-c", codes[name][0], str(answer)]

        known = {name: Part(name=name, prove=lambda _: {}, needs=needs) for name, (_, needs) in codes.items()}
        monkeypatch.setattr(selftest, "all_parts", lambda *_: known)
        monkeypatch.setattr(selftest, "part_command", command)
        monkeypatch.setattr(selftest, "doctor", lambda: MACHINE)

    return make


def results(test: SelfTest) -> dict[str, str]:
    return {part.name: part.result for part in test.parts}


def written(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "selftest.json").read_text())
    return found


def test_on_the_fake_driver_every_part_passes_or_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory and graphs are real to the binding; TensorRT's own runtime finds it too old, PyTorch finds no GPU.

    Of two GPUs the second is chosen, which the children find as their first.
    """
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library_folder()))
    monkeypatch.setenv("FAKE_GPUS", "2")
    for name in ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(device, "_choice", None)
    monkeypatch.setattr(selftest, "doctor", lambda: MACHINE)
    test = nrd_trt.selftest(tmp_path / "report", device=1)
    assert test.with_result("failed") == []
    found = {part.name: part for part in test.parts}
    assert found["driver"].result == "passed"
    assert found["driver"].figures["gpu"] == test.gpu == "Fake GPU 1"
    left = {name: part.why for name, part in found.items() if part.result == "not run"}
    assert {"tensorrt", "tensorrt-rtx", "operator"} <= left.keys()
    assert all(why and why != selftest.NOT_REACHED for why in left.values())
    assert test.conclusion.startswith("NOTHING WAS PROVEN about engines on this machine: no plan was run")
    if "tensorrt-rtx" in test.flavours:
        assert "the driver supports 12.6: driver 580 or newer is needed" in left["tensorrt-rtx"]
        assert left["tensorrt-rtx/nrd_r18_camvid/function/int8"].startswith("needs tensorrt-rtx, which was not run: ")
    assert written(tmp_path / "report") == json.loads(json.dumps(test.to_dict()))
    assert listing(tmp_path) == ["report", "report/selftest.html", "report/selftest.json"]


@needs_rtx
@pytest.mark.all_combinations
def test_a_real_runtime_that_refuses_the_driver_fails_its_part_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fake driver that looks new enough TensorRT-RTX builds the plan, and its own runtime cannot load it."""
    code = SOURCE.read_text()
    for told, newer in (
        ("version = 12060", "version = 13000"),
        ("*value = 7, CUDA_SUCCESS", "*value = 9, CUDA_SUCCESS"),
    ):
        assert told in code
        code = code.replace(told, newer)
    target = tmp_path / "driver" / libcuda.LIBRARY
    target.parent.mkdir()
    arguments = ("-O1", "-shared", "-fPIC", "-pthread", "-xc", "-", "-o", str(target))
    assert complaints_of_gcc(HEADERS[-1], *arguments, code=code) == ""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(target.parent))
    monkeypatch.setattr(selftest, "doctor", lambda: MACHINE)
    lane = "tensorrt-rtx/small/function"
    test = nrd_trt.selftest(tmp_path / "report", parts=[f"{lane}/fp16", f"{lane}/graph"])
    assert [*results(test).values()] == ["passed", "passed", "failed", "not run"]
    plan, graph = test.parts[2:]
    assert "cannot load the plan" in plan.why or plan.why.startswith("its process was ended by")
    assert graph.why == f"needs {lane}/fp16, which failed"
    assert test.verdict("tensorrt-rtx") == "failed"


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="needs a machine without an NVIDIA GPU")
def test_without_a_gpu_the_reason_is_the_drivers(tmp_path: Path, command_line: Invoke, monkeypatch: Any) -> None:
    monkeypatch.setattr(selftest, "doctor", lambda: MACHINE)
    result = command_line("selftest", "-o", tmp_path / "report", "--part", "driver")
    assert result.exit_code == 0
    assert "not run  driver: CUDA: the driver's library cannot be loaded" in result.stdout
    assert result.stdout.splitlines()[-1].startswith(
        "NOTHING WAS PROVEN about engines on this machine: no plan was run"
    )


def test_plans_of_a_tensorrt_that_is_not_there_are_not_run_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not listed unless they are named."""
    monkeypatch.setattr(selftest, "installed_flavours", list)
    monkeypatch.setattr(selftest, "doctor", lambda: MACHINE)
    monkeypatch.setattr(selftest, "run_part", lambda *_: child.Answer(result="not run", why="pip install nrd-trt[trt]"))
    test = nrd_trt.selftest(tmp_path / "named", parts=["tensorrt/small/*"])
    whys = {part.name: part.why for part in test.with_result("not run")}
    assert whys["tensorrt/small/function/fp16"].startswith("needs driver, which was not run: ")
    assert len(whys) == len(test.parts) == 3 + 2 * 8 and test.verdict("tensorrt") == "not run"
    assert len(nrd_trt.selftest(tmp_path / "all").parts) == 4


# --- results ---------------------------------------------------------------------------------------------------------


def test_a_crash_is_a_failure_with_its_signal_and_the_end_of_its_output(
    tmp_path: Path,
    make_parts: Any,
    command_line: Invoke,
) -> None:
    crash = f"{LAST_WORDS} os.kill(os.getpid(), {int(signal.SIGSEGV)})"
    make_parts({"driver": (crash, ()), "tensorrt": (PASSES, ("driver",)), "operator": (PASSES, ())})
    result = command_line("selftest", "-o", tmp_path / "report", "--json")
    assert result.exit_code == 1
    told = one_object(result.stdout)
    driver, tensorrt, operator = told["parts"]
    assert (driver["result"], driver["why"]) == ("failed", "its process was ended by SIGSEGV")
    assert driver["output"].startswith("the last words DIR/") and str(tmp_path) not in result.stdout
    assert (tensorrt["result"], tensorrt["why"]) == ("not run", "needs driver, which failed")
    assert (operator["result"], operator["why"], operator["figures"]["p50_ms"]) == ("passed", "", 1.25)
    assert (told["passed"], told["failed"], told["not_run"]) == (1, 1, 1)
    assert told["conclusion"] == "FAILED: 1 of 3 parts"
    assert "gate failed: driver" in result.stderr
    assert told == written(tmp_path / "report")


def test_a_process_that_answers_and_crashes_on_its_way_out_has_failed(tmp_path: Path, make_parts: Any) -> None:
    make_parts({"driver": (f"{PASSES}\nimport os; os._exit(3)", ()), "operator": ("raise SystemExit", ())})
    test = nrd_trt.selftest(tmp_path / "report")
    whys = [part.why for part in test.with_result("failed")]
    assert whys == ["its process ended with exit status 3", "its process ended without a result"]


def test_a_deadline_is_no_failure_and_ends_whatever_the_part_started(tmp_path: Path) -> None:
    started = tmp_path / "started"
    for deadline_s in (0.2, 2.0, 20.0):  # on a busy machine a shell may not have started anything so soon
        answer = run_part(["sh", "-c", f"sleep 60 & echo $! > {started}; wait"], tmp_path / "answer", deadline_s)
        assert (answer.result, answer.why) == ("not run", f"the deadline of {deadline_s:g} s was reached")
        if started.exists() and started.read_text().endswith("\n"):
            break
    until(lambda: ended(int(started.read_text())))  # a signal takes its time


def ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_results_are_written_as_they_come(tmp_path: Path, make_parts: Any) -> None:
    make_parts({name: (PASSES, ()) for name in ("driver", "tensorrt", "operator")})
    seen = []

    def look(line: str) -> None:
        if line.endswith("…"):
            told = written(tmp_path / "report")
            seen.append([part["result"] for part in told["parts"]])
            assert {part["why"] for part in told["parts"] if part["result"] == "not run"} == {selftest.NOT_REACHED}
            assert (tmp_path / "report/selftest.html").read_text().rstrip().endswith("</html>")

    nrd_trt.selftest(tmp_path / "report", on_stage=look)
    assert seen == [["passed"] * done + ["not run"] * (3 - done) for done in range(3)]


def test_ctrl_c_stops_the_part_and_keeps_what_was_done(tmp_path: Path, make_parts: Any) -> None:
    interrupts = f"import os, time; os.kill(os.getppid(), {int(signal.SIGUSR1)}); time.sleep(60)"
    make_parts({"driver": (PASSES, ()), "tensorrt": (interrupts, ()), "operator": (PASSES, ())})
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)  # Ctrl-C is pytest's own
    try:
        with pytest.raises(KeyboardInterrupt):
            nrd_trt.selftest(tmp_path / "report")
    finally:
        signal.signal(signal.SIGUSR1, before)
    kept = [(part["result"], part["why"]) for part in written(tmp_path / "report")["parts"]]
    assert kept == [("passed", ""), *[("not run", selftest.NOT_REACHED)] * 2]
    assert listing(tmp_path / "report") == ["selftest.html", "selftest.json"]


def answer_of(prove: Callable[[Path], Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(parts, "all_parts", lambda: {"driver": Part(name="driver", prove=prove)})
    child.main("driver", str(folder), str(folder / "answer.json"))
    found: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return found


@pytest.mark.parametrize(
    ("error", "result", "why"),
    [
        (NotRunError("no plugin library"), "not run", "no plugin library"),
        (MissingDependencyError("PyTorch is missing"), "not run", "PyTorch is missing"),
        (RunnerError("the masks differ"), "failed", "the masks differ"),
        (KeyError("x"), "failed", "internal error: KeyError: 'x'"),
    ],
)
def test_what_a_part_raises_is_its_result(
    error: Exception, result: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prove(_: Path) -> Any:
        raise error

    answer = answer_of(prove, tmp_path, monkeypatch)
    assert (answer["result"], answer["why"]) == (result, why)


# --- arguments -------------------------------------------------------------------------------------------------------


def test_chosen_parts_bring_what_they_need(tmp_path: Path, make_parts: Any) -> None:
    make_parts(
        {
            "driver": (PASSES, ()),
            "tensorrt": (PASSES, ("driver",)),
            "a/b/c/fp16": (PASSES, ("tensorrt",)),
            "x": ("", ()),
        }
    )
    test = nrd_trt.selftest(tmp_path / "report", parts=["a/*/fp16"])
    assert results(test) == dict.fromkeys(("driver", "tensorrt", "a/b/c/fp16"), "passed")


def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path,
    make_parts: Any,
    command_line: Invoke,
) -> None:
    make_parts({"driver": (PASSES, ())})
    for options, words in (
        (("--part", "drivers"), r"--part drivers: expected a part or a pattern of some, got none of driver\."),
        (("--deadline", 0), r"--deadline 0.*: expected a number, 1 or more"),
        (("--device", "first"), "--device"),
    ):
        result = command_line("selftest", "-o", tmp_path / "report", "--json", *options)
        check_refused(result, tmp_path, [], words)
    check_refused(
        command_line("selftest", "-o", tmp_path / "a/b", "--json"), tmp_path, [], "-o .*does not exist; create"
    )


def test_an_existing_report_needs_force_and_nothing_else_goes(tmp_path: Path, make_parts: Any) -> None:
    make_parts({"driver": (PASSES, ())})
    nrd_trt.selftest(tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".engines.tmp-0123456789abcdef").mkdir()  # of a run that was killed
    with pytest.raises(ConfigError, match=r"selftest.json: already exists; give force=True"):
        nrd_trt.selftest(tmp_path)
    nrd_trt.selftest(tmp_path, force=True)
    assert listing(tmp_path) == ["notes.txt", "selftest.html", "selftest.json"]
