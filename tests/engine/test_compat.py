"""The adapter: loading, messages, errors. What TensorRT does on a GPU is faked; what it does without one is real."""

from __future__ import annotations

import re
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest

from nrd_trt.engine.builder import BuildOptions, build_engine
from nrd_trt.engine.compat import FLAVOURS, ConfigOptions, TensorRT, load_tensorrt, version_numbers
from nrd_trt.engine.loading import EngineContext, LoadedEngine
from nrd_trt.errors import BuildError, ConfigError, MissingDependencyError, RunnerError, ShapeError
from nrd_trt.graph.metadata import read_facts, write_facts
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from nrd_trt.progress import silent
from nrd_trt.proving.network import small_network
from tests.artefacts import environment, needs_rtx
from tests.engine.surface.enterprise import enterprise
from tests.engine.surface.fakes import (
    PROFILE,
    CapturableContext,
    Context,
    Engine,
    Kernels,
    Kind,
    fake_module,
    with_kernels,
)
from tests.helpers import STATIC, small_export

RTX = "tensorrt-rtx"
REBUILD = "nrd_trt.build('a.nrd', 'a.nrd', force=True)"
needs_no_gpu = pytest.mark.skipif(
    Path("/proc/driver/nvidia/version").exists(), reason="shows what happens without an NVIDIA driver; there is one"
)


def small() -> onnx.ModelProto:
    return to_precision(select_outputs(small_export("uint8", "static"), "mask"), "fp16")


def load(engine: Engine | None = None, made: list[Any] | None = None) -> LoadedEngine:
    module = fake_module(engine or Engine(), [] if made is None else made)
    return TensorRT("tensorrt", module).deserialize(b"plan", host_code=False, rebuild=REBUILD)


def begin(engine: Engine | None = None) -> tuple[EngineContext, Context]:
    """Return a context of ours and TensorRT's under it."""
    engine = engine or Engine()
    assert engine.context is not None
    return load(engine).context(), engine.context


# --- modules and versions


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_missing_flavour_is_named(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, extra = FLAVOURS[flavour]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingDependencyError, match=rf"running {flavour} .*'{module}'.*pip install 'nrd-trt\[{extra}\]'"
    ):
        load_tensorrt(flavour)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("10.3.0", (10, 3, 0)), ("10.13.2.post1", (10, 13, 2)), ("11", (11,)), ("11.4.0.106", (11, 4, 0, 106)), ("x", ())],
)
def test_version_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(text) == numbers


@pytest.mark.parametrize(
    ("flavour", "version", "prefers"),
    [
        ("tensorrt", "10.3.0", False),
        ("tensorrt", "10.6.0.26", False),
        ("tensorrt", "10.7.0", True),
        ("tensorrt", "10.16.1.11", True),
        ("tensorrt", "11.0.0.114", True),
        (RTX, "1.7.1.116", False),
        (RTX, "12.0", False),
    ],
)
def test_parser_prefers_plugin(flavour: str, version: str, prefers: bool) -> None:
    assert TensorRT(flavour, fake_module(None, [], version)).parser_prefers_plugin is prefers


def test_a_setting_that_a_version_lacks_is_named() -> None:
    tensorrt = TensorRT("tensorrt", enterprise())
    with pytest.raises(ConfigError, match=r"^tensorrt 10\.3\.0 has no BuilderFlag\.VERSION_COMPATIBLE; leave that"):
        tensorrt.config(tensorrt.builder(tensorrt.log(silent)), ConfigOptions(version_compatible=True))


@needs_rtx
def test_tf32_is_off_unless_it_is_asked_for() -> None:
    """TensorRT's own default, which the adapter turns round, is part of the surface that we rely on."""
    tensorrt = load_tensorrt(RTX)
    builder, flag = tensorrt.builder(tensorrt.log(silent)), tensorrt.trt.BuilderFlag.TF32
    assert builder.create_builder_config().get_flag(flag)
    assert not tensorrt.config(builder, ConfigOptions()).get_flag(flag)
    assert tensorrt.config(builder, ConfigOptions(tf32=True)).get_flag(flag)


# --- messages of a build


@needs_rtx
def test_recorders_words_are_in_the_error_of_a_build() -> None:
    model = to_precision(select_outputs(small_export("uint8", "dynamic"), "mask"), "fp16")
    write_facts(model, replace(read_facts(model), shape=STATIC))  # so that a dynamic input gets no range
    seen: list[tuple[str, str]] = []
    with pytest.raises(BuildError, match="could not build the engine") as caught:
        build_engine(model, BuildOptions(flavour=RTX, progress=False, on_message=lambda *text: seen.append(text)))
    (error,) = (text for severity, text in seen if severity == "ERROR")
    assert "optimization profile" in error
    # The recorder's words start with an error code, the logger's with ERROR.
    assert re.search(rf"\([A-Z]+_[A-Z]+: {re.escape(error)}\)", str(caught.value))


def run_code(code: str, *arguments: Path) -> str:
    """Run Python in a process of its own, which must not crash; return what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@needs_rtx
def test_nothing_crashes_when_a_build_is_cleared_away(tmp_path: Path) -> None:
    """A network with a recorder crashed here after its parser, which had wrapped it, was gone."""
    onnx.save(small(), tmp_path / "model.onnx")
    code = """
import gc, sys
import onnx
from nrd_trt.engine.builder import BuildOptions, build_engine
for _ in range(2):
    build_engine(onnx.load(sys.argv[1]), BuildOptions(flavour="tensorrt-rtx", progress=False))
    gc.collect()
print("alive")
"""
    assert run_code(code, tmp_path / "model.onnx") == "alive\n"


# --- plans without a GPU


@needs_rtx
@needs_no_gpu
def test_plan_without_a_gpu_is_an_error_and_no_crash(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    plan.write_bytes(build_engine(small(), BuildOptions(flavour=RTX, progress=False)).plan)
    code = """
import sys
from nrd_trt.engine.compat import load_tensorrt
from nrd_trt.errors import RunnerError
for host_code in (False, True):
    for plan in (open(sys.argv[1], "rb").read(), b"no plan at all, but long enough for a header" * 9, b""):
        try:
            load_tensorrt("tensorrt-rtx").deserialize(plan, host_code=host_code, rebuild="the command")
        except RunnerError as exc:
            print(exc)
"""
    lines = run_code(code, plan).splitlines()
    assert len(lines) == 6
    for line in lines:
        assert line.startswith("tensorrt-rtx 1.")
        assert "CUDA driver version is insufficient" in line
        assert line.endswith("or there is no GPU with a new enough driver; rebuild with: the command")
    assert "magicTag" in lines[1] or "header" in lines[1].lower()


def test_runtime_or_context_that_cannot_be_made_says_what_to_do() -> None:
    module, engine = fake_module(None, []), Engine()
    module.Runtime = Mock(side_effect=TypeError("pybind11::init(): factory function returned nullptr"))
    engine.context = None
    with pytest.raises(RunnerError, match=r"tensorrt 10\.3\.0 cannot start on this machine.*NVIDIA GPU and its driver"):
        TensorRT("tensorrt", module).deserialize(b"plan", host_code=False, rebuild=REBUILD)
    with pytest.raises(RunnerError, match=r"cannot make room.*free GPU memory"):
        load(engine).context()


# --- a loaded engine


def test_refused_plan_says_why_and_what_to_do() -> None:
    seen: list[tuple[str, str]] = []
    tensorrt = TensorRT("tensorrt", fake_module(None, []))
    with pytest.raises(RunnerError) as caught:
        tensorrt.deserialize(b"plan", host_code=False, rebuild=REBUILD, on_message=lambda *text: seen.append(text))
    assert "(INVALID_STATE: other compute capability)" in str(caught.value)
    assert str(caught.value).endswith(f"rebuild with: {REBUILD}")
    assert seen == [("ERROR", "other compute capability")]


def test_host_code_is_allowed_on_demand_and_every_object_reports_to_one_recorder() -> None:
    for host_code in (False, True):
        made, engine = list[Any](), Engine()
        tensorrt = TensorRT("tensorrt", fake_module(engine, made))
        tensorrt.deserialize(b"a", host_code=host_code, rebuild=REBUILD).context()
        (runtime,) = made
        assert (runtime.plan, runtime.engine_host_code_allowed) == (b"a", host_code)
        assert runtime.error_recorder is engine.error_recorder is engine.context.error_recorder is not None


def test_specs_ranges_and_memory() -> None:
    loaded = load(Engine(logits=Kind.BF16))
    assert {name: (spec.dtype.name, spec.shape) for name, spec in {**loaded.inputs, **loaded.outputs}.items()} == {
        "image": ("uint8", (None, None, None, 3)),
        "scale": ("float32", (4,)),
        "mask": ("uint8", (None, None, None)),
        "logits": ("bfloat16", (None,)),
    }
    assert (list(loaded.inputs), list(loaded.outputs)) == (["image", "scale"], ["mask", "logits"])
    assert loaded.profile_range("image") == PROFILE
    assert loaded.profile_range("scale") == ((4,), (4,), (4,))
    assert loaded.device_memory_bytes == 12_345
    assert loaded.inputs["image"].dtype == np.uint8


def test_type_without_numpy_equivalent_is_an_error() -> None:
    with pytest.raises(RunnerError, match=r"tensor 'count': NumPy has no type Kind\.FP8"):
        load(Engine(count=Kind.FP8))


def test_shapes_addresses_and_runs_reach_the_context() -> None:
    ours, context = begin()
    assert ours.set_shapes({"image": (2, 64, 96, 3), "scale": (4,)}) == {"mask": (2, 64, 96)}
    assert context.shapes == {"image": (2, 64, 96, 3), "scale": (4,)}
    ours.set_addresses({"image": 4096, "mask": 8192})
    ours.enqueue(7)
    assert (context.addresses, context.runs) == ({"image": 4096, "mask": 8192}, [7])


def test_a_profiled_engine_tells_every_layer_of_every_run() -> None:
    loaded = load()
    told: list[tuple[str, float]] = []
    loaded.context().enqueue(7)
    loaded.profile(lambda name, milliseconds: told.append((name, milliseconds)))
    context = loaded.context()
    for _ in range(2):
        context.enqueue(7)
    assert told == [("conv", 0.5)] * 2
    loaded.close()
    with pytest.raises(RunnerError, match="is closed"):
        loaded.profile(lambda *_: None)


def test_scratch_memory_is_the_callers_and_as_large_as_the_shapes_need() -> None:
    engine = Engine()
    ours, context = begin(engine)
    assert [strategy.name for strategy in engine.made_with] == ["USER_MANAGED"]
    ours.set_shapes({"image": (2, 64, 96, 3)})
    assert ours.scratch_bytes == 777
    ours.set_scratch(4096, 1000)
    assert context.scratch == (4096, 1000)
    context.needed = 0  # which says that it cannot tell
    ours.set_shapes({"image": (1, 64, 96, 3)})
    assert ours.scratch_bytes == engine.device_memory_size_v2


def test_shapes_that_are_set_are_not_set_again_unless_one_was_refused() -> None:
    ours, context = begin()
    first, other = {"image": (2, 64, 96, 3)}, {"image": (1, 64, 96, 3)}
    for shapes in (first, dict(first), other, first):
        assert ours.set_shapes(shapes)["mask"] == shapes["image"][:3]
    assert context.asked == 3
    with pytest.raises(ShapeError):
        ours.set_shapes({"image": (2, 64, 96, 4)})
    assert ours.set_shapes(first) == {"mask": (2, 64, 96)}
    assert context.asked == 4


def test_only_a_context_that_tells_is_asked_whether_it_can_be_captured() -> None:
    begin()[0].check_capturable(0)
    engine = Engine()
    engine.context = CapturableContext(engine)
    ours, _ = begin(engine)
    ours.check_capturable(7)
    with pytest.raises(RunnerError, match="may allocate memory, which a capture forbids; build it again"):
        ours.check_capturable(8)


def test_kernels_of_an_earlier_process_are_taken_before_there_is_a_context() -> None:
    assert not load().compiles
    engine = Engine()
    module = with_kernels(fake_module(engine, []))
    loaded = TensorRT(RTX, module).deserialize(b"plan", host_code=False, rebuild=REBUILD)
    assert loaded.compiles and engine.made_with == []
    assert (loaded.take_kernels(b"theirs"), loaded.take_kernels(b"ours")) == (False, True)
    for _ in range(2):
        loaded.context()
    settings, again = engine.made_with
    assert settings is again and settings.allocation.name == "USER_MANAGED"
    # Not the default, which changes kernels in the midst of runs.
    assert settings.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    assert loaded.kernels() == b"ours, and more" and isinstance(settings.kernels, Kernels)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"image": (4, 64, 64, 3)}, "'image': expected a shape from 1×64×64×3 to 3×256×320×3, got 4×64×64×3"),
        ({"image": (1, 64, 352, 3)}, "to 3×256×320×3, got 1×64×352×3"),
        ({"image": (1, 32, 64, 3)}, "got 1×32×64×3"),
        ({"image": (1, 64, 64, 4)}, "got 1×64×64×4"),
        ({"image": (1, 64, 64)}, "got 1×64×64;"),
        ({"scale": (5,)}, "expected a shape from 4 to 4, got 5"),
        ({"mask": (1, 64, 64)}, r"expected inputs \['image', 'scale'\], got 'mask'"),
    ],
    ids=["batch", "large", "small", "channels", "rank", "static", "output"],
)
def test_shape_outside_the_profile_is_refused(shapes: dict[str, tuple[int, ...]], words: str) -> None:
    ours, context = begin()
    with pytest.raises(ShapeError, match=words):
        ours.set_shapes(shapes)
    assert context.shapes == {}


@pytest.mark.parametrize(
    ("unset", "words"),
    [(["scale"], "does not know the shapes of scale yet"), (["raise"], "cannot work out the shapes")],
)
def test_shapes_that_stay_unknown_are_an_error(unset: list[str], words: str) -> None:
    ours, context = begin()
    context.unset = unset
    with pytest.raises(RunnerError, match=words):
        ours.set_shapes({"image": (1, 64, 64, 3)})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda ours: ours.set_shapes({"image": (1, 64, 64, 3)}), "refused the shape .* of input 'image'"),
        (lambda ours: ours.set_scratch(1, 2), "refused its scratch memory"),
        (lambda ours: ours.set_addresses({"mask": 1}), "refused the address of 'mask'"),
        (lambda ours: ours.enqueue(0), "could not start the run"),
    ],
    ids=["shape", "scratch", "address", "run"],
)
def test_refusal_is_an_error_with_its_own_messages_only(call: Any, words: str) -> None:
    ours, context = begin()
    context.answer = False
    for _ in range(2):
        with pytest.raises(RunnerError, match=rf"{words} \(INVALID_STATE: the reason\)\.$"):
            call(ours)


def test_closed_engine_drops_users_before_what_they_use_and_says_so() -> None:
    dropped: list[str] = []
    made: list[Any] = []
    engine: Any = Engine()
    loaded = load(engine, made)
    ours = loaded.context()
    weakref.finalize(engine.context, dropped.append, "context")
    weakref.finalize(made.pop(), dropped.append, "runtime")
    engine.context = None
    for closing in (ours, loaded) * 2:
        closing.close()
    assert dropped == ["context", "runtime"]
    for call in (lambda: ours.enqueue(0), lambda: ours.set_shapes({}), lambda: loaded.profile_range("image")):
        with pytest.raises(RunnerError, match="the engine is closed"):
            call()
    assert list(loaded.inputs) == ["image", "scale"]


@needs_rtx
def test_rtx_compiles_no_decode_for_turing() -> None:
    """Which is why `rtx_makes_plans_for` leaves 7.5 out; once this builds, it may be let in."""
    options = BuildOptions(flavour="tensorrt-rtx", config=ConfigOptions(compute_capabilities=("7.5",)))
    with pytest.raises(BuildError, match="FP32 GEMM is not supported"):
        build_engine(small_network(), options)
