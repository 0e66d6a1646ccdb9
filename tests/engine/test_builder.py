"""Real TensorRT-RTX builds; they need no GPU."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from nrd_trt.engine import builder
from nrd_trt.engine.builder import BuildOptions, build_engine, check_types
from nrd_trt.engine.caches import CacheKey, read_timing_cache, write_timing_cache
from nrd_trt.engine.compat import ConfigOptions, load_tensorrt
from nrd_trt.engine.messages import progress_monitor
from nrd_trt.errors import BuildError, ConfigError
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.tensors import copy_model
from nrd_trt.progress import silent
from nrd_trt.specs import InputForm, LayerRecord, Precision
from tests.artefacts import needs_rtx
from tests.engine.surface.enterprise import enterprise
from tests.helpers import exported, small_export

RTX = "tensorrt-rtx"

FACTORS: tuple[tuple[str, ...], ...] = (
    ("resnetv1c18", "mobilenetv2"),
    ("fp32", "fp16", "bf16"),
    ("mask", "logits", "both"),
    ("uint8", "float", "rgb_float"),
    ("static", "dynamic"),
)
PAIRWISE = [  # with as few exports as possible, those of the quickest network apart, which others need too
    ("resnetv1c18", "fp32", "logits", "rgb_float", "static"),
    ("resnetv1c18", "fp16", "mask", "float", "static"),
    ("resnetv1c18", "fp16", "logits", "uint8", "dynamic"),
    ("resnetv1c18", "bf16", "both", "uint8", "static"),
    ("mobilenetv2", "fp32", "mask", "uint8", "static"),
    ("mobilenetv2", "fp32", "both", "float", "dynamic"),
    ("mobilenetv2", "fp16", "both", "rgb_float", "static"),
    ("mobilenetv2", "bf16", "logits", "float", "dynamic"),
    ("mobilenetv2", "bf16", "mask", "rgb_float", "dynamic"),
]
TYPE = {"fp32": "float", "fp16": "half", "bf16": "bf16"}


def options(**changes: Any) -> BuildOptions:
    return BuildOptions(**{"flavour": RTX, "progress": False, **changes})


def small(precision: Precision = "fp16") -> onnx.ModelProto:
    return to_precision(select_outputs(small_export("uint8", "static"), "mask"), precision)


def check_build(encoder: str, precision: Precision, output: str, form: InputForm, shape: str) -> None:
    network = small_export(form, shape) if encoder == "mobilenetv2" else exported(encoder, 19, form, shape, 64)
    model = to_precision(select_outputs(network, output), precision)
    engine = build_engine(model, options())
    assert len(engine.plan) > 1_000_000
    assert (engine.flavour, engine.compute_capabilities) == (RTX, ())
    convolutions = [layer for layer in engine.layers if layer.kind == "convolution"]
    assert len(convolutions) == sum(node.op_type == "Conv" for node in model.graph.node)
    typed = [layer for layer in convolutions if layer.type == TYPE[precision]]
    # bf16 keeps the stem and the layers that predict weights and guidance in fp32.
    assert len(typed) > 0.7 * len(convolutions) if precision == "bf16" else typed == convolutions
    assert sum(engine.types_found.values()) == len(engine.layers)
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert weights <= len(engine.plan) < 1.1 * weights + 3_000_000  # the plan holds the weights in the file's types


def test_list_covers_all_pairs() -> None:
    for first, second in itertools.combinations(range(len(FACTORS)), 2):
        covered = {(row[first], row[second]) for row in PAIRWISE}
        assert covered == set(itertools.product(FACTORS[first], FACTORS[second]))


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize(("encoder", "precision", "output", "form", "shape"), PAIRWISE)
def test_build(encoder: str, precision: Precision, output: str, form: InputForm, shape: str) -> None:
    check_build(encoder, precision, output, form, shape)


@needs_rtx
@pytest.mark.all_combinations
@pytest.mark.parametrize(
    ("encoder", "form", "shape", "precision", "output"),
    list(itertools.product(("resnetv1c50", *FACTORS[0]), *FACTORS[3:], *FACTORS[1:3])),  # exports vary slowest
)
def test_build_all(encoder: str, form: InputForm, shape: str, precision: Precision, output: str) -> None:
    check_build(encoder, precision, output, form, shape)


# --- proof of the types got


def layer_records(model: onnx.ModelProto) -> list[LayerRecord]:
    names = {1: "float", 10: "half", 16: "bf16"}
    kinds = {tensor.name: names.get(tensor.data_type, "other") for tensor in model.graph.initializer}
    return [
        LayerRecord(name=node.name, kind="convolution", type=kinds[node.input[1]])
        for node in model.graph.node
        if node.op_type == "Conv"
    ]


@pytest.mark.parametrize("asked", FACTORS[1])
@pytest.mark.parametrize("file", FACTORS[1])
def test_layers_must_have_the_files_types_and_those_the_precision_that_was_asked_for(file: Any, asked: str) -> None:
    model = small(file)
    if file == asked or (file, asked) == ("bf16", "fp32"):  # a bf16 file keeps layers in fp32
        check_types(model, layer_records(model), asked)
    else:
        with pytest.raises(BuildError, match="no convolution has that type"):
            check_types(model, layer_records(model), asked)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "float"}, "half, got float"),
        ({"type": "bf16"}, "half, got bf16"),
        ({"kind": "constant"}, "half, got none"),
        ({"name": "another"}, "half, got none"),
    ],
)
@pytest.mark.parametrize("which", [slice(5, 6), slice(None)], ids=["one", "all"])
def test_other_types_are_an_error(which: slice, changes: dict[str, str], words: str) -> None:
    model = small("fp16")
    layers = layer_records(model)
    name = layers[which][0].name
    layers[which] = [replace(layer, **changes) for layer in layers[which]]
    with pytest.raises(BuildError, match="precision fp16 was asked for and is not what") as caught:
        check_types(model, layers, "fp16")
    assert f"{name} ({words})" in str(caught.value)


# --- what else can happen


MACHINE = {"gpu": "Orin", "driver": "540.4.0"}
KEY = CacheKey(builder="tensorrt 10.3.0", **MACHINE)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put the double of enterprise TensorRT 10.3 in place; TensorRT-RTX has no timing cache."""
    module = enterprise("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def build_with_cache(cache: Path, **changes: Any) -> list[tuple[str, str]]:
    """Build with a timing cache; return what the builder says."""
    seen: list[tuple[str, str]] = []
    asked = {"flavour": "tensorrt", "timing_cache": cache, **MACHINE, **changes}
    build_engine(small(), options(on_message=lambda *message: seen.append(message), **asked))
    return seen


def test_timing_cache_is_written_and_read_again(tmp_path: Path, trt: Any) -> None:
    cache = tmp_path / "timing.cache"
    for _ in range(2):
        assert build_with_cache(cache) == []
        header, content = cache.read_bytes().split(b"\n", 1)
        assert json.loads(header)["key"] == asdict(KEY)
        assert content == b"ours"
    assert [config.timings for config in trt.configs] == [b"", b"ours"]
    assert list(tmp_path.iterdir()) == [cache]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"gpu": "Thor"}, "gpu was Thor, is Orin"),
        ({"gpu": None}, "gpu was None, is Orin"),
        ({"driver": "580.1"}, "driver was 580.1, is 540.4.0"),
        ({"builder": "tensorrt 10.7.0"}, "builder was tensorrt 10.7.0, is tensorrt 10.3.0"),
    ],
)
def test_timings_of_another_machine_are_replaced(
    change: dict[str, Any], difference: str, tmp_path: Path, trt: Any
) -> None:
    cache = tmp_path / "timing.cache"
    write_timing_cache(cache, replace(KEY, **change), b"theirs")
    ((severity, text),) = build_with_cache(cache)
    assert severity == "WARNING" and f"{cache}: its timings are not used and will be replaced: {difference}" in text
    assert [config.timings for config in trt.configs] == [b""]
    assert read_timing_cache(cache, KEY, silent) == b"ours"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"damaged", "not a timing cache of this version"),
        (lambda data: data.replace(b'"gpu"', b'"cpu"'), "not a timing cache of this version .*missing required"),
        (lambda data: data.replace(b'"Orin"', b"7"), "not a timing cache of this version .*Expected"),
        (lambda data: data.replace(b"cache 1", b"cache 2"), "the timing cache is damaged"),
        (lambda data: data[:-1] + b"x", "the timing cache is damaged"),
        (None, "the timing cache was made by another TensorRT or GPU"),
    ],
)
def test_damaged_timing_cache(change: Callable[[bytes], bytes] | None, words: str, tmp_path: Path, trt: Any) -> None:
    cache = tmp_path / "timing.cache"
    write_timing_cache(cache, KEY, b"ours" if change else b"not readable")
    if change:
        cache.write_bytes(change(cache.read_bytes()))
    before = cache.read_bytes()
    with pytest.raises(BuildError, match=rf"timing\.cache: {words}.*delete the file"):
        build_with_cache(cache)
    assert cache.read_bytes() == before


@needs_rtx
def test_rtx_writes_a_timing_cache_without_timings_and_nothing_to_stdout(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """TensorRT prints to stdout by default, which belongs to the command's result."""
    cache, seen = tmp_path / "timing.cache", []
    asked = options(timing_cache=cache, progress=True, on_message=lambda *message: seen.append(message))
    plans = [build_engine(small(), asked).plan for _ in range(2)]
    header, content = cache.read_bytes().split(b"\n", 1)
    assert json.loads(header)["key"]["builder"] == f"tensorrt-rtx {load_tensorrt(RTX).version}"
    assert content == b""
    assert plans[0] == plans[1]
    assert capfd.readouterr().out == ""
    assert seen


@needs_rtx
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_being_stopped_stops_the_build(sent: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as every verb does
    before = signal.getsignal(sent)
    goes_on: list[bool] = []

    def monitor_of_an_impatient_user(trt: Any, start: Callable[..., None], step: Callable[[str], bool]) -> Any:
        def interrupted(phase: str) -> bool:
            os.kill(os.getpid(), sent)
            goes_on.append(step(phase))
            return goes_on[-1]

        return progress_monitor(trt, start, interrupted)

    monkeypatch.setattr(builder, "progress_monitor", monitor_of_an_impatient_user)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(small("fp32"), options(timing_cache=tmp_path / "timing.cache"))
        assert signal.getsignal(sent) is before
    finally:
        signal.signal(signal.SIGTERM, outer)
    assert goes_on == [False]  # the builder is told to stop at its first step, and stops
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_unknown_operator_gives_the_parsers_words() -> None:
    model = copy_model(small())
    next(node for node in model.graph.node if node.op_type == "Clip").op_type = "NoSuchOperator"
    with pytest.raises(BuildError, match=r"cannot parse the ONNX file.*NoSuchOperator"):
        build_engine(model, options())


@needs_rtx
def test_compute_capabilities_are_taken_and_an_unknown_one_names_the_known() -> None:
    engine = build_engine(small(), options(config=ConfigOptions(compute_capabilities=("8.6", "8.9"))))
    assert engine.compute_capabilities == ("8.6", "8.9")
    for unknown in ("1.0", "99", "fast"):
        with pytest.raises(ConfigError, match=rf"compute_capabilities={unknown}: .*knows .*8\.6.*8\.9"):
            build_engine(small(), options(config=ConfigOptions(compute_capabilities=(unknown,))))


def test_config_takes_what_is_in_range() -> None:
    for name, allowed, refused in (("workspace_mib", (1,), (0,)), ("optimization_level", (0, 5), (-1, 6))):
        for value in allowed:
            assert getattr(ConfigOptions(**{name: value}), name) == value
        for value in refused:
            with pytest.raises(ConfigError, match=f"{name}={value}: expected"):
                ConfigOptions(**{name: value})
