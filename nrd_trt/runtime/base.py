"""The Runner contract and the life cycle that all runners share. NumPy only.

A runner's constructor is cheap; its resources live between entering and leaving. ``infer`` checks every feed before any
copy and returns arrays that the caller owns. A graph may pack four pixels of the mask in one int32; runners show and
give it unpacked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from nrd_trt.errors import RunnerError, ShapeError, attempt, leave
from nrd_trt.progress import OnLayer
from nrd_trt.specs import MaskEncoding, TensorLike, TensorSpec

Arithmetic = Literal["native", "simulated", "tf32", "fp32", "bf16", "fp16"]
_BYTE, _FOUR_BYTES = np.dtype(np.uint8), np.dtype("<i4")


@runtime_checkable
class Runner(Protocol):
    """Anything that turns named input arrays into named output arrays.

    Attributes:
        name: Backend, e.g. ``"onnxruntime"``.
        arithmetic: ``"native"``; ``"simulated"`` or ``"tf32"`` where fp32 results are rounded as the file's types say;
            or the type that layers are executed in instead of the file's, such as ``"bf16"``, which is no evidence.
        inputs: Specs by name; known once entered.
        outputs: Specs by name; known once entered.
    """

    name: str
    arithmetic: Arithmetic

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Input specs by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Output specs by name."""
        ...

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; the arrays returned are fresh.

        Raises:
            RunnerError: The runner is not entered, or the backend failed.
            ShapeError: A feed is missing, unknown, or has another type or shape.
        """
        ...

    def __enter__(self) -> Runner:
        """Acquire resources."""
        ...

    def __exit__(self, *error: object) -> None:
        """Release resources; may be called again."""
        ...


@dataclass(frozen=True, kw_only=True)
class DeviceTensor:
    """An array in device memory.

    Attributes:
        address: On the device.
        shape: In elements, dense and row-major.
        dtype: Element type.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


Feed = Mapping[str, np.ndarray | DeviceTensor]
"""Inputs by name, each on the host or on the device."""

Placement = Callable[[str, int], int]
"""From an output's name and size in bytes to the device address, aligned to 256, of memory that the caller keeps."""


@runtime_checkable
class DeviceRunner(Runner, Protocol):
    """A runner that can also read and write device memory, without copies to the host.

    Attributes:
        cuda_graph: Whether runs are replayed as CUDA graphs.
    """

    cuda_graph: bool

    def infer_device(
        self, feed: Mapping[str, DeviceTensor], stream: int, place: Placement | None = None
    ) -> dict[str, DeviceTensor]:
        """Queue one run on a CUDA stream.

        Args:
            feed: Inputs, which must stay valid until the stream has passed the run.
            stream: Handle of a CUDA stream.
            place: Tells where outputs are to be written; None takes memory of the runner.

        Returns:
            Outputs where they were placed, or in memory of the runner, valid until its next run on this stream; that
            memory is kept for the last eight streams. Runs may be queued at once, on this stream or another; those of
            different streams may overlap.

        Raises:
            RunnerError: The runner is not entered, memory is not of its GPU and context, or the run cannot be started.
            ShapeError: An input is missing, unknown, or has another type or shape.
        """
        ...

    def profile_layers(self, on_layer: OnLayer) -> None:
        """Time every layer of each run from now on, without CUDA graphs; nothing of the runner is running now.

        Raises:
            RunnerError: The runner is not entered.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LayerRun:
    """What one layer took.

    Attributes:
        name: As the backend names it.
        ms: Mean milliseconds of a run.
        type: What it was executed in, such as ``"int8"``, ``"bf16"`` or ``"fp32"``; None where that is not told.
    """

    name: str
    ms: float
    type: str | None


@runtime_checkable
class ProfilingRunner(Runner, Protocol):
    """A runner on the host that tells what its layers take."""

    def layer_times(self, feed: Mapping[str, np.ndarray], runs: int) -> list[LayerRun]:
        """Return what each layer takes, in the order of execution, over `runs` runs of their own.

        One more run comes before them, in a session that times its layers, which makes it slower. Layers that were
        fused are one. Nodes of the decode have ``decode/``, ``resize/``, ``argmax/`` or ``confidence/`` in their
        names.

        Raises:
            RunnerError: The runner is not entered, or the backend failed.
            ShapeError: A feed is missing, unknown, or has another type or shape.
        """
        ...


class BaseRunner(ABC):
    """Life cycle and feed checks; a backend implements `_open`, `_run` and `_close`.

    Attributes:
        mask_encoding: How the backend gives the output ``mask``; known once entered.
    """

    name: str
    arithmetic: Arithmetic = "native"
    mask_encoding: MaskEncoding = "uint8"

    def __init__(self) -> None:
        self._specs: tuple[dict[str, TensorSpec], dict[str, TensorSpec]] | None = None

    @abstractmethod
    def _open(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        """Acquire resources and return the backend's input and output specs."""

    @abstractmethod
    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run on checked feeds; outputs are as the backend gives them."""

    @abstractmethod
    def _close(self) -> None:
        """Release resources."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Input specs by name."""
        return self._entered()[0]

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Output specs by name."""
        return self._entered()[1]

    def __enter__(self) -> BaseRunner:
        if self._specs is not None:
            raise RunnerError(f"{self.name}: already entered; leave it first or make a second runner.")
        inputs, outputs = self._open()
        try:
            self._specs = inputs, self._unpacked_specs(outputs)
        except RunnerError:
            attempt(self._close)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._specs is not None:
            self._specs = None
            leave(self._close, error)

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; see `Runner.infer`."""
        check_feed(self.name, feed, self.inputs)
        outputs = self._run(feed)
        if self.mask_encoding == "u8x4" and "mask" in outputs:
            outputs["mask"] = unpacked(outputs["mask"])
        return outputs

    def _unpacked_specs(self, outputs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
        """Return the specs of outputs as `infer` gives them."""
        packed = outputs.get("mask")
        if self.mask_encoding == "uint8" or packed is None:
            return outputs
        if packed.dtype != np.int32 or not packed.shape:
            raise RunnerError(
                f"{self.name}: tensor 'mask': expected int32 with four pixels in each, got {packed.dtype}; export the "
                "model again."
            )
        *outer, words = packed.shape
        mask = replace(packed, dtype=_BYTE, shape=(*outer, None if words is None else 4 * words))
        return {**outputs, "mask": mask}

    def _entered(self) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        if self._specs is None:
            raise RunnerError(f"{self.name}: not entered; use it inside a `with` block.")
        return self._specs


def unpacked(mask: np.ndarray) -> np.ndarray:
    """Return a mask ``(…, w) uint8`` of one that holds four pixels in each int32 ``(…, w / 4)``, the first lowest."""
    return mask.astype(_FOUR_BYTES, copy=False).view(_BYTE)


def check_feed(runner_name: str, feed: Mapping[str, TensorLike], specs: Mapping[str, TensorSpec]) -> None:
    """Raise `ShapeError` unless `feed` names every input with its type and a matching shape."""
    if feed.keys() != specs.keys():
        raise ShapeError(f"{runner_name}: expected inputs {sorted(specs)}, got {sorted(feed)}.")
    for name, spec in specs.items():
        spec.check(feed[name])
