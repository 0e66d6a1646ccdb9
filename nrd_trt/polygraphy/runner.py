"""The PyTorch model as a Polygraphy runner, with the inputs and outputs of an exported file. PyTorch on use."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from nrd_trt.errors import ConfigError, NrdTrtError
from nrd_trt.graph.metadata import GraphFacts
from nrd_trt.model import load_model, require_torch
from nrd_trt.polygraphy.settings import read_model, reported
from nrd_trt.specs import CheckpointOptions, InputForm
from nrd_trt.validation.references import check_classes

PREFIX = "nrd-torch-runner"
"""What the names of these runners begin with."""


class NrdTorchRunner(BaseRunner):
    """Runs a checkpoint in PyTorch, fp32.

    Args:
        checkpoint: ``.pth`` or ``.safetensors``.
        model: The ONNX file, or the file in a bundle, whose inputs and outputs it takes; None needs both of the next.
        input_form: See `nrd_trt.specs.InputForm`; None is the model's.
        output: ``"mask"``, ``"logits"`` or ``"both"``; None is the model's.
        options: Fields of `nrd_trt.specs.CheckpointOptions`: what the checkpoint does not tell itself.
        name: Name of the runner; None takes one that is not used yet.
    """

    def __init__(
        self,
        checkpoint: str,
        model: str | None = None,
        input_form: InputForm | None = None,
        output: str | None = None,
        options: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name, prefix=PREFIX)
        self._checkpoint, self._model, self._options = Path(checkpoint), model, dict(options or {})
        self._input_form, self._output = input_form, output

    @reported()
    def activate_impl(self) -> None:
        """Load the checkpoint."""
        require_torch("running a checkpoint in Polygraphy")
        from nrd_trt.runtime.torch_runner import TorchRunner

        graph = self._read_graph()
        network = load_model(self._checkpoint, **self._fields())
        input_form, output = self._input_form, self._output
        if graph is not None:
            check_classes(self._checkpoint, network, graph)
            input_form, output = input_form or graph.input_form, output or graph.output
        self._outputs = str(output).replace("both", "mask,logits").split(",")
        self._runner = TorchRunner(
            network,
            input_form or "uint8",
            logits="logits" in self._outputs,
            confidence="confidence" in self._outputs,
        ).__enter__()
        self._graph = graph

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Return the input ``image`` with the sizes that the model fixes."""
        ((name, spec),) = self._runner.inputs.items()
        shape = None if self._graph is None else self._graph.shape
        extents = (None, None, None) if shape is None else (shape.batch, shape.height, shape.width)
        fixed = iter([extent.min if extent and extent.is_static else None for extent in extents])
        sizes = [next(fixed) if size is None else size for size in spec.shape]
        return TensorMetadata().add(name, dtype=spec.dtype, shape=sizes)

    @reported()
    def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        """Run once and note the time it took, in seconds."""
        started = time.perf_counter()
        outputs = self._runner.infer({name: np.asarray(value) for name, value in feed_dict.items()})
        self.inference_time = time.perf_counter() - started
        if self._graph is not None and self._graph.mask_encoding == "u8x4" and "mask" in self._outputs:
            outputs["mask"] = np.ascontiguousarray(outputs["mask"]).view("<i4")
        return OrderedDict((name, outputs[name]) for name in self._outputs)

    def deactivate_impl(self) -> None:
        """Release the model."""
        self._runner.__exit__(None, None, None)
        del self._graph, self._outputs, self._runner

    def _read_graph(self) -> GraphFacts | None:
        """Read the facts of the model; None where both forms are given and it tells none."""
        try:
            if self._model is None:
                raise ConfigError("nrd-torch: no model is given whose inputs and outputs it could take.")
            return read_model(Path(self._model)).graph
        except NrdTrtError as exc:
            if self._input_form is not None and self._output is not None:
                return None
            raise ConfigError(f"{exc} Or say them with --nrd-torch-input and --nrd-torch-output.") from exc

    def _fields(self) -> dict[str, Any]:
        known = CheckpointOptions.__dataclass_fields__
        if unknown := sorted(self._options.keys() - known.keys()):
            raise ConfigError(f"--nrd-torch-options {', '.join(unknown)}: expected some of {', '.join(known)}.")
        return {name: tuple(v) if isinstance(v, list) else v for name, v in self._options.items()}
