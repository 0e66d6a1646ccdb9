"""Builder options: what a TensorRT takes, what it gets, and what it refuses."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from nrd_trt.engine.compat import ConfigOptions, TensorRT, load_tensorrt
from nrd_trt.engine.options import OPTIONS, option_texts
from nrd_trt.errors import ConfigError
from nrd_trt.progress import silent
from tests.artefacts import REPOSITORY, needs_rtx
from tests.engine.surface.enterprise import enterprise

RTX = "tensorrt-rtx"
VALUES = {"a whole number from 0": "0", "a whole number from 1": "4096", "true or false": "true"}
GOT = {
    "avg_timing_iterations": lambda trt, config: config.avg_timing_iterations == 4096,
    "disable_compilation_cache": lambda trt, config: config.get_flag(trt.BuilderFlag.DISABLE_COMPILATION_CACHE),
    "distributive_independence": lambda trt, config: config.get_flag(trt.BuilderFlag.DISTRIBUTIVE_INDEPENDENCE),
    "l2_limit_for_tiling": lambda trt, config: config.l2_limit_for_tiling == 0,
    "max_aux_streams": lambda trt, config: config.max_aux_streams == 0,
    "max_num_tactics": lambda trt, config: config.max_num_tactics == 4096,
    "monitor_memory": lambda trt, config: config.get_flag(trt.BuilderFlag.MONITOR_MEMORY),
    "preview_features": lambda trt, config: config.get_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03),
    "sparse_weights": lambda trt, config: config.get_flag(trt.BuilderFlag.SPARSE_WEIGHTS),
    "strict_nans": lambda trt, config: config.get_flag(trt.BuilderFlag.STRICT_NANS),
    "tactic_dram": lambda trt, config: config.get_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM) == 4096,
    "tactic_shared_memory": lambda trt, config: (
        config.get_memory_pool_limit(trt.MemoryPoolType.TACTIC_SHARED_MEMORY) == 4096
    ),
    "tactic_sources": lambda trt, config: (
        config.get_tactic_sources() == 1 << int(trt.TacticSource.EDGE_MASK_CONVOLUTIONS)
    ),
    "tiling_optimization_level": lambda trt, config: (
        config.tiling_optimization_level == trt.TilingOptimizationLevel.NONE
    ),
}
"""Whether TensorRT-RTX's configuration has what the options were set to, the first member of each enum."""


def rtx_config(**options: str) -> tuple[Any, Any]:
    """TensorRT-RTX's module, and a configuration of it with options."""
    tensorrt = load_tensorrt(RTX)
    builder = tensorrt.builder(tensorrt.log(silent))
    return tensorrt.trt, tensorrt.config(builder, ConfigOptions(builder_options=options))


@needs_rtx
def test_every_option_reaches_the_configuration() -> None:
    known = load_tensorrt(RTX).known_options()
    assert known.keys() == GOT.keys()
    for name, words in known.items():
        value = VALUES.get(words) or words.partition(" of ")[2].split(", ")[0].lower()
        trt, config = rtx_config(**{name: value})
        assert GOT[name](trt, config), name


@needs_rtx
def test_a_flag_can_be_cleared_and_several_members_named() -> None:
    trt, config = rtx_config(sparse_weights="False", tactic_sources="jit_convolutions, EDGE_MASK_CONVOLUTIONS")
    assert not config.get_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    assert config.get_tactic_sources() == sum(1 << int(one) for one in trt.TacticSource.__members__.values())


@needs_rtx
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("fp16", "true", "has no 'fp16'; it has avg_timing_iterations, disable_compilation_cache"),
        ("quantization_flags", "calibrate_before_fusion", "has no 'quantization_flags'; it has"),
        ("same_compute_capability", "true", "has no 'same_compute_capability'; it has"),  # it has, and ignores it
        ("max_aux_streams", "-1", "'max_aux_streams' of .*: expected a whole number from 0, got '-1'"),
        ("max_aux_streams", "two", "expected a whole number from 0, got 'two'"),
        ("sparse_weights", "yes", "'sparse_weights' of .*: expected true or false, got 'yes'"),
        ("tiling_optimization_level", "huge", "expected one of NONE, FAST, MODERATE, FULL, got 'huge'"),
        ("tactic_sources", "CUBLAS,JIT_CONVOLUTIONS", "some of EDGE_MASK_CONVOLUTIONS, JIT_CONVOLUTIONS, got 'CUBLAS,"),
    ],
)
def test_what_an_installed_version_lacks_is_refused_with_what_it_has(name: str, value: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^builder_options=: .*{told}") as caught:
        load_tensorrt(RTX).check_options({name: value})
    with pytest.raises(ConfigError) as again:
        rtx_config(**{name: value})
    assert str(again.value) == str(caught.value)


def test_the_documentation_lists_every_option() -> None:
    page = (REPOSITORY / "docs" / "builder-options.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(OPTIONS)


def test_no_option_is_a_precision() -> None:
    words = " ".join(OPTIONS).upper()
    assert not [name for name in ("FP16", "BF16", "INT8", "FP8", "FP4", "INT4", "TF32", "PRECISION") if name in words]


def test_a_value_that_tensorrt_does_not_take_is_an_error() -> None:
    """It warns and goes on without."""

    class Config:
        max_aux_streams = property(lambda self: -1, lambda self, value: None)

    module = SimpleNamespace(IBuilderConfig=Config, __version__="10.3.0")
    builder = SimpleNamespace(create_builder_config=Config)
    config = enterprise()  # for the names that every configuration needs
    tensorrt = TensorRT("tensorrt", SimpleNamespace(**{**vars(config), **vars(module)}))
    Config.clear_flag = lambda self, flag: None  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"tensorrt 10\.3\.0 does not take '2' for 'max_aux_streams'; its messages"):
        tensorrt.config(builder, ConfigOptions(builder_options={"max_aux_streams": "2"}))


def test_values_of_python_become_texts_in_the_order_of_their_names() -> None:
    given = {"tactic_sources": ("A", "B"), "sparse_weights": True, "max_aux_streams": 2, "tiling": "fast"}
    texts = {"max_aux_streams": "2", "sparse_weights": "true", "tactic_sources": "A,B", "tiling": "fast"}
    assert list(option_texts(given).items()) == list(texts.items())


def test_two_kinds_of_compatibility_are_refused() -> None:
    with pytest.raises(ConfigError, match="hardware_compatible=True: expected one kind of compatibility"):
        ConfigOptions(hardware_compatible=True, builder_options={"same_compute_capability": "true"})
    ConfigOptions(hardware_compatible=True, builder_options={"same_compute_capability": "false"})
