"""Real TensorRT-RTX builds; they need no GPU."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from nrd_trt.engine import builder
from nrd_trt.engine.builder import BuildOptions, build_engine, check_types
from nrd_trt.engine.compat import FLAVOURS, ConfigOptions, TensorRT, installed_flavours, load_tensorrt
from nrd_trt.engine.timing_cache import TimingCacheKey, write_timing_cache
from nrd_trt.errors import BuildError, ConfigError, MissingDependencyError
from nrd_trt.graph.outputs import select_outputs
from nrd_trt.graph.precision import to_precision
from nrd_trt.graph.tensors import copy_model
from nrd_trt.specs import InputForm, Precision
from tests.helpers import exported, small_export

RTX = "tensorrt-rtx"
needs_rtx = pytest.mark.skipif(
    RTX not in installed_flavours(), reason="needs the builder: `pip install nrd-trt[rtx]` (no GPU needed)"
)

FACTORS: tuple[tuple[str, ...], ...] = (
    ("resnetv1c18", "resnetv1c50", "mobilenetv2"),
    ("fp32", "fp16", "bf16"),
    ("mask", "logits", "both"),
    ("uint8", "float"),
    ("static", "dynamic"),
)
PAIRWISE = [
    ("mobilenetv2", "bf16", "mask", "float", "static"),
    ("mobilenetv2", "fp16", "both", "uint8", "dynamic"),
    ("mobilenetv2", "fp32", "logits", "uint8", "dynamic"),
    ("resnetv1c18", "bf16", "both", "uint8", "dynamic"),
    ("resnetv1c18", "fp16", "logits", "float", "static"),
    ("resnetv1c18", "fp32", "mask", "float", "dynamic"),
    ("resnetv1c50", "bf16", "logits", "uint8", "static"),
    ("resnetv1c50", "fp16", "mask", "uint8", "dynamic"),
    ("resnetv1c50", "fp32", "both", "float", "static"),
]
TYPE = {"fp32": "float", "fp16": "half", "bf16": "bf16"}


def options(**changes: Any) -> BuildOptions:
    return BuildOptions(**{"flavour": RTX, "progress": False, **changes})


def small(precision: Precision = "fp16") -> onnx.ModelProto:
    return to_precision(select_outputs(small_export("uint8", "static"), "mask"), precision)


def check_build(encoder: str, precision: Precision, output: str, form: InputForm, shape: str) -> None:
    model = to_precision(select_outputs(exported(encoder, 19, form, shape, 128), output), precision)
    engine = build_engine(model, options())
    assert len(engine.plan) > 1_000_000
    assert (engine.flavour, engine.compute_capabilities) == (RTX, ())
    convolutions = [layer for layer in engine.layers if layer["kind"] == "convolution"]
    assert len(convolutions) == sum(node.op_type == "Conv" for node in model.graph.node)
    typed = [layer for layer in convolutions if layer["type"] == TYPE[precision]]
    # bf16 keeps the stem and the layers that predict weights and guidance in fp32.
    assert len(typed) > 0.7 * len(convolutions) if precision == "bf16" else typed == convolutions
    assert sum(engine.types_found.values()) == len(engine.layers)
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert weights <= len(engine.plan) < 1.1 * weights + 3_000_000  # the plan holds the weights in the file's types


def test_list_covers_all_pairs() -> None:
    for first, second in itertools.combinations(range(len(FACTORS)), 2):
        covered = {(row[first], row[second]) for row in PAIRWISE}
        assert covered == set(itertools.product(FACTORS[first], FACTORS[second]))


@needs_rtx
@pytest.mark.parametrize(("encoder", "precision", "output", "form", "shape"), PAIRWISE)
def test_build(encoder: str, precision: Precision, output: str, form: InputForm, shape: str) -> None:
    check_build(encoder, precision, output, form, shape)


@needs_rtx
@pytest.mark.all_combinations
@pytest.mark.parametrize(
    ("encoder", "form", "shape", "precision", "output"),
    list(itertools.product(FACTORS[0], FACTORS[3], FACTORS[4], FACTORS[1], FACTORS[2])),  # exports vary slowest
)
def test_build_all(encoder: str, form: InputForm, shape: str, precision: Precision, output: str) -> None:
    check_build(encoder, precision, output, form, shape)


# --- proof of the types got


def layer_records(model: onnx.ModelProto) -> list[dict[str, str]]:
    names = {1: "float", 10: "half", 16: "bf16"}
    kinds = {tensor.name: names.get(tensor.data_type, "other") for tensor in model.graph.initializer}
    return [
        {"name": node.name, "kind": "convolution", "type": kinds[node.input[1]]}
        for node in model.graph.node
        if node.op_type == "Conv"
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_layers_with_the_files_types_pass(precision: Precision) -> None:
    model = small(precision)
    check_types(model, layer_records(model), precision)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda layers: layers[5].update(type="float"), "half, got float"),
        (lambda layers: layers[5].update(type="bf16"), "half, got bf16"),
        (lambda layers: layers.pop(5), "half, got none"),
        (lambda layers: layers.clear(), "half, got none"),
        (lambda layers: [layer.update(type="float") for layer in layers], "half, got float"),
        (lambda layers: layers[5].update(kind="constant"), "half, got none"),
    ],
    ids=["one-float", "one-bf16", "one-missing", "all-missing", "all-float", "other-kind"],
)
def test_other_types_are_an_error(change: Any, words: str) -> None:
    model = small("fp16")
    layers = layer_records(model)
    name = layers[5]["name"]
    change(layers)
    with pytest.raises(BuildError, match="precision fp16 was asked for and is not what") as caught:
        check_types(model, layers, "fp16")
    assert words in str(caught.value)
    assert name in str(caught.value) or len(layers) == 0 or words.startswith("half, got float")


@pytest.mark.parametrize(("file", "asked"), [("fp32", "fp16"), ("fp32", "bf16"), ("fp16", "fp32"), ("bf16", "fp16")])
def test_a_file_of_another_precision_is_an_error(file: Precision, asked: Precision) -> None:
    model = small(file)
    with pytest.raises(BuildError, match="no convolution has that type"):
        check_types(model, layer_records(model), asked)


# --- what else can happen


class _CacheConfig:
    """The part of an enterprise builder configuration that deals with timing caches; b"ours" is readable."""

    def __init__(self) -> None:
        self.content: bytes | None = None

    def create_timing_cache(self, content: bytes) -> Any:
        readable = content in (b"", b"ours")
        return SimpleNamespace(content=content, serialize=lambda: b"ours") if readable else None

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.content = cache.content
        return not ignore_mismatch


class _WithTimingCache(TensorRT):
    """TensorRT-RTX, which has no timing cache, with the one of `_CacheConfig`."""

    caches: list[_CacheConfig] = []  # noqa: RUF012 (of one test)

    def timing_cache_key(self, gpu: str | None, driver: str | None) -> TimingCacheKey:
        return TensorRT("tensorrt", self.trt).timing_cache_key(gpu, driver)

    def set_timing_cache(self, config: Any, content: bytes) -> Callable[[], bytes]:
        self.caches.append(_CacheConfig())
        return TensorRT("tensorrt", self.trt).set_timing_cache(self.caches[-1], content)


@pytest.fixture
def timing_caches(monkeypatch: pytest.MonkeyPatch) -> list[_CacheConfig]:
    monkeypatch.setattr(_WithTimingCache, "caches", [])
    monkeypatch.setattr(builder, "load_tensorrt", lambda flavour: _WithTimingCache(flavour, load_tensorrt(flavour).trt))
    return _WithTimingCache.caches


@needs_rtx
def test_timing_cache_is_written_and_read_again(tmp_path: Path, timing_caches: list[_CacheConfig]) -> None:
    cache = tmp_path / "timing.cache"
    build_engine(small(), options(timing_cache=cache, gpu="Orin", driver="540.4.0"))
    header, content = cache.read_bytes().split(b"\n", 1)
    version = load_tensorrt(RTX).version
    assert json.loads(header)["key"] == {"builder": f"tensorrt {version}", "gpu": "Orin", "driver": "540.4.0"}
    assert content == b"ours"
    build_engine(small(), options(timing_cache=cache, gpu="Orin", driver="540.4.0"))
    assert [entry.content for entry in _WithTimingCache.caches] == [b"", b"ours"]
    assert list(tmp_path.iterdir()) == [cache]


@needs_rtx
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"gpu": "Thor"}, "gpu was Orin, is Thor"),
        ({"gpu": None}, "gpu was Orin, is None"),
        ({"driver": "580.1"}, "driver was 540.4.0, is 580.1"),
        ({"builder": "tensorrt 10.3.0"}, "builder was tensorrt 10.3.0, is tensorrt 1."),
    ],
    ids=["gpu", "unknown gpu", "driver", "builder"],
)
def test_timings_of_another_machine_are_replaced(
    change: dict[str, Any], difference: str, tmp_path: Path, timing_caches: list[_CacheConfig]
) -> None:
    cache = tmp_path / "timing.cache"
    machine = {"gpu": "Orin", "driver": "540.4.0"}
    version = change.get("builder", f"tensorrt {load_tensorrt(RTX).version}")
    write_timing_cache(cache, TimingCacheKey(builder=version, **machine), b"theirs")
    seen: list[tuple[str, str]] = []
    asked = {**machine, **{name: value for name, value in change.items() if name != "builder"}}
    build_engine(small(), options(timing_cache=cache, on_message=lambda *message: seen.append(message), **asked))
    assert [entry.content for entry in timing_caches] == [b""]
    (warning,) = (text for severity, text in seen if severity == "WARNING" and "timing.cache" in text)
    assert difference in warning
    assert json.loads(cache.read_bytes().split(b"\n")[0])["key"].items() >= asked.items()
    assert cache.read_bytes().endswith(b"\nours")


def _old_form(cache: Path) -> None:
    cache.write_bytes(b"damaged")


def _changed_content(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:-1] + b"x")


def _changed_header(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes().replace(b'"gpu"', b'"cpu"'))


def _refused_content(cache: Path) -> None:
    key = json.loads(cache.read_bytes().split(b"\n")[0])["key"]
    write_timing_cache(cache, TimingCacheKey(**key), b"not ours")


@needs_rtx
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_old_form, "not a timing cache of this version"),
        (_changed_header, "not a timing cache of this version"),
        (_changed_content, "the timing cache is damaged"),
        (_refused_content, "the timing cache was made by another TensorRT or GPU"),
    ],
)
def test_damaged_timing_cache(
    damage: Callable[[Path], None], words: str, tmp_path: Path, timing_caches: list[_CacheConfig]
) -> None:
    cache = tmp_path / "timing.cache"
    write_timing_cache(cache, TimingCacheKey(builder=f"tensorrt {load_tensorrt(RTX).version}"), b"ours")
    damage(cache)
    before = cache.read_bytes()
    with pytest.raises(BuildError, match=rf"timing\.cache: {words}.*delete the file"):
        build_engine(small(), options(timing_cache=cache))
    assert cache.read_bytes() == before


@needs_rtx
def test_rtx_writes_a_timing_cache_without_timings(tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    first = build_engine(small(), options(timing_cache=cache))
    header, content = cache.read_bytes().split(b"\n", 1)
    assert json.loads(header)["key"]["builder"] == f"tensorrt-rtx {load_tensorrt(RTX).version}"
    assert content == b""
    assert build_engine(small(), options(timing_cache=cache)).plan == first.plan


@needs_rtx
def test_ctrl_c_stops_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timing_caches: list[_CacheConfig]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    cache = tmp_path / "timing.cache"
    assert timing_caches == []
    steps: list[bool] = []
    start, step = builder._Bars.start, builder._Bars.step

    def start_and_interrupt(self: Any, phase: str, parent: str | None, count: int) -> None:
        start(self, phase, parent, count)
        if parent is None:
            os.kill(os.getpid(), signal.SIGINT)

    def recorded(self: Any, phase: str, number: int) -> bool:
        steps.append(step(self, phase, number))
        return steps[-1]

    monkeypatch.setattr(builder._Bars, "start", start_and_interrupt)
    monkeypatch.setattr(builder._Bars, "step", recorded)
    model = to_precision(select_outputs(exported("resnetv1c50", 19, "float", "static", 128), "both"), "fp32")
    with pytest.raises(KeyboardInterrupt):
        build_engine(model, options(timing_cache=cache))
    assert False in steps  # the builder was told to stop
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is before


@needs_rtx
def test_unknown_operator_gives_the_parsers_words() -> None:
    model = copy_model(small())
    next(node for node in model.graph.node if node.op_type == "Clip").op_type = "NoSuchOperator"
    with pytest.raises(BuildError, match=r"cannot parse the ONNX file.*NoSuchOperator"):
        build_engine(model, options())


@needs_rtx
@pytest.mark.parametrize("capability", ["1.0", "99", "fast"])
def test_unknown_compute_capability_names_the_known(capability: str) -> None:
    with pytest.raises(ConfigError, match=rf"--compute-capability {capability}.*knows .*8\.6.*8\.9"):
        build_engine(small(), options(config=ConfigOptions(compute_capabilities=(capability,))))


@needs_rtx
def test_compute_capabilities_are_taken() -> None:
    engine = build_engine(small(), options(config=ConfigOptions(compute_capabilities=("8.6", "8.9"))))
    assert engine.compute_capabilities == ("8.6", "8.9")


@pytest.mark.parametrize(
    "fields", [{"workspace_mib": 0}, {"optimization_level": 6}, {"optimization_level": -1}], ids=str
)
def test_config_refuses(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"got {next(iter(fields.values()))}"):
        ConfigOptions(**fields)


@needs_rtx
def test_stdout_stays_empty(capfd: pytest.CaptureFixture[str]) -> None:
    """TensorRT prints to stdout by default, which belongs to the command's result."""
    seen: list[tuple[str, str]] = []
    build_engine(small(), options(progress=True, on_message=lambda severity, text: seen.append((severity, text))))
    assert capfd.readouterr().out == ""
    assert seen


@pytest.fixture
def without_package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setitem(sys.modules, FLAVOURS[request.param][0], None)
    yield request.param


@pytest.mark.parametrize("without_package", FLAVOURS, indirect=True)
def test_missing_package_is_named(without_package: str) -> None:
    module, extra = FLAVOURS[without_package]
    with pytest.raises(MissingDependencyError, match=rf"'{module}'.*pip install nrd-trt\[{extra}\]"):
        build_engine(small(), options(flavour=without_package))
