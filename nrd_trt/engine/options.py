"""Settings of TensorRT's builder that few need, by name and text: ``{"max_aux_streams": "2"}``.

What an installed version takes is found by attribute; the module is handed in by `nrd_trt.engine.compat`. Precisions
are not among them, since they live in the ONNX file, nor is what would make a plan that the runner cannot run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

from nrd_trt.errors import ConfigError

OptionValue = str | int | bool | Sequence[str]


class _Values(Protocol):
    """What an option takes: in words, and as TensorRT's values; `read` raises ValueError or KeyError for others."""

    def words(self, trt: Any) -> str: ...

    def read(self, trt: Any, text: str) -> Any: ...


@dataclass(frozen=True)
class _Whole:
    """A whole number."""

    least: int

    def words(self, trt: Any) -> str:
        return f"a whole number from {self.least}"

    def read(self, trt: Any, text: str) -> int:
        if (number := int(text)) < self.least:
            raise ValueError(text)
        return number


@dataclass(frozen=True)
class _Member:
    """A member of an enum by its name in any case, or several, separated by commas."""

    enum: str
    several: bool = False

    def words(self, trt: Any) -> str:
        return f"{'some' if self.several else 'one'} of {', '.join(getattr(trt, self.enum).__members__)}"

    def read(self, trt: Any, text: str) -> Any:
        members = getattr(trt, self.enum).__members__
        found = [members[name.strip().upper()] for name in (text.split(",") if self.several else [text])]
        return found if self.several else found[0]


@dataclass(frozen=True)
class _Switch:
    """On or off."""

    def words(self, trt: Any) -> str:
        return "true or false"

    def read(self, trt: Any, text: str) -> bool:
        return {"true": True, "false": False}[text.strip().lower()]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One setting.

    Attributes:
        names: What of TensorRT it needs; a version that lacks one of these does not have the option.
        values: What it takes.
        apply: Sets a value on a configuration, given the module, and returns whether that has it now.
        for_rtx: False where TensorRT-RTX has the names and ignores them.
    """

    names: tuple[str, ...]
    values: _Values
    apply: Callable[[Any, Any, Any], bool]
    for_rtx: bool = True

    def is_in(self, trt: Any, flavour: str) -> bool:
        """Whether a module has it."""
        found = (reduce(lambda owner, part: getattr(owner, part, None), name.split("."), trt) for name in self.names)
        return None not in found and (self.for_rtx or flavour != "tensorrt-rtx")


def _property(name: str, values: _Values, *names: str) -> Option:
    """An option that is a property of the configuration."""

    def apply(trt: Any, config: Any, value: Any) -> bool:
        setattr(config, name, value)
        return bool(getattr(config, name) == value)

    return Option(names=(f"IBuilderConfig.{name}", *names), values=values, apply=apply)


def _pool(name: str) -> Option:
    """An option that limits a pool of memory, in bytes."""

    def apply(trt: Any, config: Any, value: int) -> bool:
        pool = getattr(trt.MemoryPoolType, name)
        config.set_memory_pool_limit(pool, value)
        return bool(config.get_memory_pool_limit(pool) == value)

    return Option(names=(f"MemoryPoolType.{name}",), values=_Whole(1), apply=apply)


def _flag(name: str, *, for_rtx: bool = True) -> Option:
    """An option that is a flag of the builder."""

    def apply(trt: Any, config: Any, value: bool) -> bool:
        flag = getattr(trt.BuilderFlag, name)
        (config.set_flag if value else config.clear_flag)(flag)
        return bool(config.get_flag(flag)) == value

    return Option(names=(f"BuilderFlag.{name}",), values=_Switch(), apply=apply, for_rtx=for_rtx)


def _same_capability(trt: Any, config: Any, value: bool) -> bool:
    levels = trt.HardwareCompatibilityLevel
    config.hardware_compatibility_level = level = levels.SAME_COMPUTE_CAPABILITY if value else levels.NONE
    return bool(config.hardware_compatibility_level == level)


def _tactic_sources(trt: Any, config: Any, sources: list[Any]) -> bool:
    bits = sum({1 << int(source) for source in sources})
    return bool(config.set_tactic_sources(bits)) and config.get_tactic_sources() == bits


def _preview_features(trt: Any, config: Any, features: list[Any]) -> bool:
    for feature in features:
        config.set_preview_feature(feature, True)
    return all(map(config.get_preview_feature, features))


def _quantization_flags(trt: Any, config: Any, flags: list[Any]) -> bool:
    for flag in flags:
        config.set_quantization_flag(flag)
    return all(map(config.get_quantization_flag, flags))


OPTIONS: Mapping[str, Option] = {
    "avg_timing_iterations": _property("avg_timing_iterations", _Whole(1)),
    "disable_compilation_cache": _flag("DISABLE_COMPILATION_CACHE"),
    "disable_timing_cache": _flag("DISABLE_TIMING_CACHE", for_rtx=False),  # its timing cache is a stub
    "distributive_independence": _flag("DISTRIBUTIVE_INDEPENDENCE"),
    "editable_timing_cache": _flag("EDITABLE_TIMING_CACHE", for_rtx=False),
    "error_on_timing_cache_miss": _flag("ERROR_ON_TIMING_CACHE_MISS", for_rtx=False),
    "l2_limit_for_tiling": _property("l2_limit_for_tiling", _Whole(0)),
    "max_aux_streams": _property("max_aux_streams", _Whole(0)),
    "max_num_tactics": _property("max_num_tactics", _Whole(1)),
    "monitor_memory": _flag("MONITOR_MEMORY"),
    "preview_features": Option(
        names=("PreviewFeature", "IBuilderConfig.get_preview_feature", "IBuilderConfig.set_preview_feature"),
        values=_Member("PreviewFeature", several=True),
        apply=_preview_features,
    ),
    "quantization_flags": Option(
        names=("QuantizationFlag", "IBuilderConfig.get_quantization_flag", "IBuilderConfig.set_quantization_flag"),
        values=_Member("QuantizationFlag", several=True),
        apply=_quantization_flags,
    ),
    "same_compute_capability": Option(
        names=("HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY", "HardwareCompatibilityLevel.NONE"),
        values=_Switch(),
        apply=_same_capability,
        for_rtx=False,
    ),
    "sparse_weights": _flag("SPARSE_WEIGHTS"),
    "strict_nans": _flag("STRICT_NANS"),
    "tactic_dram": _pool("TACTIC_DRAM"),
    "tactic_shared_memory": _pool("TACTIC_SHARED_MEMORY"),
    "tactic_sources": Option(
        names=("TacticSource", "IBuilderConfig.get_tactic_sources", "IBuilderConfig.set_tactic_sources"),
        values=_Member("TacticSource", several=True),
        apply=_tactic_sources,
    ),
    "tiling_optimization_level": _property(
        "tiling_optimization_level", _Member("TilingOptimizationLevel"), "TilingOptimizationLevel"
    ),
}


def option_texts(options: Mapping[str, OptionValue]) -> dict[str, str]:
    """Return options with their values as texts, in the order of their names: ``True`` is ``"true"``."""
    return {name: _text(options[name]) for name in sorted(options)}


def _text(value: OptionValue) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int) else ",".join(value)


def known_options(trt: Any, flavour: str) -> dict[str, str]:
    """Return the options that a module has, with what each takes in words."""
    return {name: option.values.words(trt) for name, option in OPTIONS.items() if option.is_in(trt, flavour)}


def is_on(options: Mapping[str, str], name: str) -> bool:
    """Whether a switch is among these options, and on."""
    return options.get(name, "").strip().lower() == "true"


def check_options(trt: Any, flavour: str, options: Mapping[str, str]) -> None:
    """Raise `ConfigError` where a module does not have an option or a value; the message lists what it has."""
    _values(trt, flavour, options)


def _values(trt: Any, flavour: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Return what texts stand for, by name of the option; see `check_options`."""
    known, version = known_options(trt, flavour), f"{flavour} {trt.__version__}"
    values = {}
    for name, text in options.items():
        if name not in known:
            raise ConfigError(f"builder_options=: {version} has no {name!r}; it has {', '.join(known)}.")
        try:
            values[name] = OPTIONS[name].values.read(trt, text)
        except (ValueError, KeyError) as exc:
            raise ConfigError(
                f"builder_options=: {name!r} of {version}: expected {known[name]}, got {text!r}; correct it."
            ) from exc
    return values


def set_options(trt: Any, flavour: str, config: Any, options: Mapping[str, str]) -> None:
    """Set options on a builder configuration.

    Raises:
        ConfigError: As `check_options`, or TensorRT did not take one.
    """
    for name, value in _values(trt, flavour, options).items():
        if not OPTIONS[name].apply(trt, config, value):
            raise ConfigError(
                f"builder_options=: {flavour} {trt.__version__} does not take {options[name]!r} for {name!r}; its "
                "messages say why. Leave it out or change it."
            )
