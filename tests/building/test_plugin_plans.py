"""Plans that need the plugin library: how they are opened, by every verb, and what is said where they are not.

Enterprise TensorRT, its GPU and the code in the library are doubles; files and ONNX Runtime are real.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nrd_trt import benchmark, evaluate, open_bundle, validate
from nrd_trt.decode.function import MASK_OP
from nrd_trt.engine import plugins
from nrd_trt.engine.bundle import PLAN_FILE, read_bundle
from nrd_trt.engine.plugins import LIBRARY, VARIABLE
from nrd_trt.errors import ConfigError, MissingDependencyError, PluginError, RunnerError
from nrd_trt.inspection import inspect as inspect_module
from nrd_trt.inspection import plan_summary
from nrd_trt.inspection.inspect import inspect
from nrd_trt.runtime import select
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.runtime.select import RunOptions, make_runner
from nrd_trt.runtime.trt_runner import TrtRunner
from tests.artefacts import bundle, checkpoint, onnx_file, scenes
from tests.building.plugin_machine import ORIN, host
from tests.plugin_library import library, needs_compiler

pytestmark = [needs_compiler, pytest.mark.usefixtures("no_library")]


# --- opening a plan with the plugin


@pytest.mark.parametrize(("how", "runner"), [("argument", "auto"), ("variable", "tensorrt")])
def test_library_is_loaded_before_the_plan(
    how: str, runner: str, planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = host(monkeypatch)
    if how == "variable":
        monkeypatch.setenv(VARIABLE, str(library()))
    made = make_runner(read_bundle(planned), RunOptions(runner=runner, plugin=library() if how == "argument" else None))
    assert type(made) is TrtRunner
    assert module.registry.loaded == []  # constructors are cheap
    for _ in range(2):
        with made:  # the double's runtime refuses the plan where the creator is not registered
            assert module.registry.loaded == [str(library())]


def test_plan_is_run_by_the_cuda_that_is_asked_for(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    for runner in ("auto", "tensorrt"):
        engine = open_bundle(planned, runner=runner, plugin=library(), cuda="pycuda")
        with pytest.raises(MissingDependencyError, match="by way of PyCUDA needs"):
            engine.__enter__()
    with pytest.raises(ConfigError, match="cuda='opencl': expected one of 'driver', 'pycuda'"):
        open_bundle(planned, cuda="opencl")


@pytest.mark.parametrize(
    ("runner", "revision", "device", "words"),
    [
        (
            "auto",
            2,
            ORIN,
            r"built with another plugin library: .* kernel revision 1\), got .*not opened",
        ),
        ("tensorrt", 1, replace(ORIN, cuda="11.4"), "CUDA 11.4 or older"),
    ],
)
def test_another_library_is_refused_with_what_to_do(
    runner: str, revision: int, device: Any, words: str, planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = host(monkeypatch, device)
    with pytest.raises(PluginError, match=words) as caught:
        make_runner(read_bundle(planned), RunOptions(runner=runner, plugin=library(revision)))
    if revision == 2:
        call = f"nrd_trt.build({str(planned)!r}, {str(planned)!r}, builder='tensorrt', decode='plugin', force=True)"
        assert str(caught.value).endswith(f"rebuild with: {call}")
    assert module.registry.loaded == []


def test_library_of_the_build_is_found_behind_another_one(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the bundle was built with the wheel's, and the checkout's `plugins/build` was made later."""
    module = host(monkeypatch)
    monkeypatch.setattr(plugins, "places_here", lambda *_: [library(2), library()])
    with make_runner(read_bundle(planned)) as made:
        assert type(made) is TrtRunner
        assert module.registry.loaded == [str(library())]


@pytest.mark.parametrize("named", [False, True])
def test_auto_takes_onnx_runtime_and_says_so(named: bool, planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch)
    if named:
        monkeypatch.setenv(VARIABLE, str(library(2)))
    why = "built with another plugin library" if named else "no plugin library was found"
    with pytest.warns(UserWarning, match=f"the plan is not run, ONNX Runtime takes its place: .*{why}"):
        assert type(make_runner(read_bundle(planned))) is OrtRunner
    with pytest.raises(PluginError, match=why):
        make_runner(read_bundle(planned), RunOptions(runner="tensorrt"))
    made = make_runner(read_bundle(planned), RunOptions(runner="onnxruntime"))
    assert type(made) is OrtRunner  # which needs no library


def test_host_that_differs_says_how_to_rebuild_with_the_plugin(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch, replace(ORIN, compute_capability="8.9"))
    with pytest.raises(RunnerError, match=r"built for 8\.7, this is 8\.9.*builder='tensorrt', decode='plugin'"):
        make_runner(read_bundle(planned), RunOptions(runner="tensorrt", plugin=library()))


# --- the option on the other verbs


def use(verb: str, path: Path, folder: Path, plugin: Path | None) -> Any:
    """Call a verb on a bundle, by the plan."""
    if verb == "predict":
        return open_bundle(path, runner="tensorrt", plugin=plugin)
    if verb == "validate":
        return validate(path, runner="tensorrt", plugin=plugin, progress=False)
    if verb == "benchmark":
        return benchmark(path, runner="tensorrt", plugin=plugin, runs=1, warmup=0, progress=False)
    return evaluate(path, folder, runner="tensorrt", plugin=plugin, progress=False)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("data") / "data", 1, labels=True)


VERBS = ["predict", "validate", "benchmark", "evaluate"]


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_hand_the_library_on(verb: str, planned: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch)
    seen: list[Any] = []

    class Stop(Exception):
        pass

    def plan_runner(plan: Any, built: Any, rebuild: str, run: Any, **options: Any) -> Any:
        seen.append(options)
        raise Stop

    monkeypatch.setattr(select, "plan_runner", plan_runner)
    with pytest.raises(Stop):
        use(verb, planned, labelled, library())
    assert [(options["plugin"].path, options["graph"].mask_encoding) for options in seen] == [(library(), "uint8")]
    with pytest.raises(PluginError, match="another plugin library"):
        use(verb, planned, labelled, library(2))


def test_library_is_not_ignored_in_silence(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"expected a bundle whose plan needs it and is run.*runner='onnxruntime'"):
        make_runner(read_bundle(planned), RunOptions(runner="onnxruntime", plugin=library()))
    host(monkeypatch, device=None)
    with pytest.warns(UserWarning, match="is not used: this machine cannot run the plan"):
        assert type(make_runner(read_bundle(planned), RunOptions(runner="auto", plugin=library()))) is OrtRunner


def test_library_that_nothing_needs_is_refused(labelled: Path) -> None:
    refused = r"^plugin=.*: expected a bundle whose plan needs it"
    for verb in VERBS:
        with pytest.raises(ConfigError, match=refused):
            use(verb, bundle(), labelled, library())
    with pytest.raises(ConfigError, match=f"{refused}, got .*safetensors"):
        evaluate(checkpoint(), labelled, plugin=library())
    for sources in ([checkpoint()], [checkpoint(), bundle()]):
        with pytest.raises(ConfigError, match=f"{refused}, got"):
            benchmark(*sources, plugin=library(), size=(64, 96), progress=False)
    for path in (bundle(), onnx_file()):
        with pytest.raises(ConfigError, match=r"^plugin=.*leave"):
            inspect(path, plugin=library())


# --- inspect


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = host(monkeypatch)
    monkeypatch.setattr(plan_summary, "has_gpu", lambda: True)
    monkeypatch.setattr(inspect_module, "has_gpu", lambda: True)
    layers = [{"Name": f"decode_head/{MASK_OP}", "LayerType": "PluginV3", "Outputs": []}]
    monkeypatch.setattr(
        "nrd_trt.engine.loading.LoadedEngine.layer_information", lambda self: json.dumps({"Layers": layers})
    )
    return module


def test_inspect_opens_the_plan_and_compares_the_library_with_the_record_without_a_gpu_too(
    planned: Path, with_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for gpu in (True, False):
        monkeypatch.setattr(plan_summary, "has_gpu", lambda gpu=gpu: gpu)
        monkeypatch.setattr(inspect_module, "has_gpu", lambda gpu=gpu: gpu)
        found = inspect(planned, plugin=library()).to_dict()
        assert found["plugin"] == read_bundle(planned).record.to_dict()["plugin"]
        assert found["plan"]["opened"] is gpu
        assert with_gpu.registry.loaded == [str(library())]
        with pytest.raises(PluginError, match="another plugin library"):
            inspect(planned, plugin=library(2))


@pytest.mark.parametrize("name", ["planned.nrd", PLAN_FILE])
def test_inspect_without_the_library_tells_the_rest(name: str, planned: Path, with_gpu: Any) -> None:
    found = inspect(planned if name != PLAN_FILE else planned / PLAN_FILE).to_dict()
    assert found["plan"]["opened"] is False
    assert "no plugin library was found" in found["plan"]["why_not"]
    assert found["plugin"]["file"] == LIBRARY and found["layers_from"] == "build"


def test_inspect_of_a_plan_alone(planned: Path, with_gpu: Any, tmp_path: Path) -> None:
    path = tmp_path / "alone.plan"
    path.write_bytes((planned / PLAN_FILE).read_bytes())
    found = inspect(path).to_dict()
    assert found["plugin"] is None and "Cannot find plugin" in found["plan"]["why_not"]
    found = inspect(path, plugin=library()).to_dict()
    assert found["plugin"] == {"layers": [f"decode_head/{MASK_OP}"]}
    assert found["plan"]["opened"] is True
