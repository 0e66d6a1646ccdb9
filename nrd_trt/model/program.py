"""A trained network as a program: what PyTorch executes, operation by operation, batch norm folded in NumPy.

Nothing here goes through the exporter: operations are those that PyTorch's dispatcher sees while the network draws a
small image, a batch norm belongs to the convolution whose output it reads, and folding is arithmetic of this module. A
fault of the exporter is therefore not repeated here. torch and NumPy only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nrd_trt.decode.reference import patch_decode, upsample
from nrd_trt.errors import ExportError
from nrd_trt.model.heads import NrdHead
from nrd_trt.model.network import Segmentor
from nrd_trt.model.words import IGNORED, LAYOUT, READINGS
from nrd_trt.program import Operand, Operation, Program
from nrd_trt.specs import Size

_TRACED_HW = (64, 96)
_BINS = 2048


def network_program(model: Segmentor, size_hw: Size = _TRACED_HW) -> Program:
    """Return what a network computes from ``pixels``, its normalised image: ``theta`` and ``guidance``, or ``logits``.

    Tokens and maps hold the same numbers: reshapes, transposes, padding and crops are left out.

    Args:
        model: In evaluation mode, on the CPU.
        size_hw: The image's; it matters to what windows mask, and to nothing else.

    Returns:
        The program; weights and biases are float64, batch norm and ``cat_norm`` folded.

    Raises:
        ExportError: The network executes an operation that is not known here.
    """
    trace = _Trace()
    images = torch.zeros(1, 3, *size_hw)
    with torch.no_grad(), _scopes(model, trace.scope), trace:
        trace.know(images, "pixels")
        results = {name: trace.operand(tensor) for name, tensor in _run(model, images).items()}
    program = _fold_batch_norms(Program(operations=tuple(trace.operations), results=results))
    return _fold_cat_norm(program, model.decode_head) if isinstance(model.decode_head, NrdHead) else program


def decode_tables(head: NrdHead) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of a patch's columns and rows after ``cat_norm``, each ``(f,) float64``."""
    scale, shift = _affine(head.cat_norm)
    steps = np.arange(head.config.patch) / head.config.patch
    return steps * scale[0] + shift[0], steps * scale[1] + shift[1]


def draw_ending(model: Segmentor, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Compute in float64 what follows the network.

    Args:
        model: Gives the decode's constants.
        inputs: ``theta (B, P, h, w)`` and ``guidance (B, m, f·h, f·w)`` as a file has it, or a baseline's ``logits``.

    Returns:
        Logits ``(B, K, H, W)``, and these enlarged to the size of the mask.
    """
    tensors = {name: torch.from_numpy(values).double() for name, values in inputs.items()}
    if isinstance(model.decode_head, NrdHead):
        x_table, y_table = map(torch.from_numpy, decode_tables(model.decode_head))
        logits = patch_decode(tensors["theta"], tensors["guidance"], x_table, y_table, model.config.decode)
    else:
        logits = tensors["logits"]
    return logits.numpy(), upsample(logits, model.config.upsample).numpy()


def measure_operations(
    model: Segmentor, pixels: Iterable[np.ndarray], places: Set[str]
) -> dict[str, tuple[np.ndarray, float]]:
    """Run images and count the magnitudes that operations give.

    Args:
        model: In evaluation mode, on the CPU.
        pixels: ``(1, 3, H, W) float32`` each, normalised.
        places: Which outputs are wanted, by `Operation.place`.

    Returns:
        By place, ``(2048,)`` counts of magnitudes from zero to the largest, and the largest.
    """
    meter = _Meter(places)
    with torch.no_grad(), _scopes(model, meter.scope), meter:
        for image in pixels:
            meter.start()
            if "pixels" in places:
                meter.add("pixels", image)
            _run(model, torch.from_numpy(image))
    return meter.found


def _run(model: Segmentor, images: Tensor) -> dict[str, Tensor]:
    features = model.backbone(images)
    head = model.decode_head
    if isinstance(head, NrdHead):
        return {"theta": head.theta(features[-1]), "guidance": head.guidance(features[0])}
    return {"logits": head(features)}


@contextmanager
def _scopes(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the names of the modules that are being called on `stack`."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        handles.append(module.register_forward_hook(lambda *_: _drop(stack)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _drop(stack: list[str]) -> None:
    stack.pop()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation while it is active, each under a name of its own: its layer, its kind and a count."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scope: list[str] = []
        self._seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").split(".")[0]
        if name not in IGNORED:
            layer = (self.scope[-1] if self.scope else "") or "decode_head"
            self._seen[f"{layer}/{name}"] += 1
            output = result[0] if isinstance(result, tuple) else result
            self.take(name, layer, f"{layer}/{name}_{self._seen[f'{layer}/{name}']}", args, output)
        return result

    @abstractmethod
    def take(self, name: str, layer: str, place: str, args: Any, output: Tensor) -> None:
        """Receive an operation when it has run."""


class _Trace(_Watch):  # type: ignore[no-untyped-call]
    """Writes down every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._operands: dict[int, Operand] = {}
        self._alive: list[Tensor] = []  # an id is one tensor's as long as that lives

    def know(self, tensor: Tensor, operand: Operand) -> None:
        self._operands[id(tensor)] = operand
        self._alive.append(tensor)

    def operand(self, value: object) -> Operand:
        if not isinstance(value, Tensor):
            return None
        known = self._operands.get(id(value))
        return value.detach().numpy() if known is None else known

    def take(self, name: str, layer: str, place: str, args: Any, output: Any) -> None:
        if not self._reads_pixels(args):
            return  # a constant
        if name in LAYOUT or (name == "expand" and output.shape == args[0].shape):
            self.know(output, self.operand(args[0]))
            return
        if name == "unbind":
            self._take_parts(layer, place, args[0], output)
            return
        if name not in READINGS:
            raise ExportError(f"aten::{name}: expected one of {', '.join(READINGS)}; the network computes otherwise.")
        try:
            kind, operands, attributes, labels = READINGS[name](self.operand, args)
        except (TypeError, ValueError) as exc:
            raise ExportError(
                f"aten::{name}: expected other arguments ({exc}); the network computes otherwise."
            ) from exc
        if not self._is_bias(kind, operands, place):
            self.operations.append(
                Operation(name=layer, kind=kind, attributes=attributes, operands=operands, labels=labels, place=place)
            )
        self.know(output, (len(self.operations) - 1, 0))

    def _is_bias(self, kind: str, operands: tuple[Operand, ...], place: str) -> bool:
        """Whether a sum adds a linear layer's bias to the latest operation, which has taken it then."""
        latest = self.operations[-1] if self.operations else None
        if kind != "Add" or latest is None or latest.kind != "Gemm" or len(latest.operands) != 2:
            return False
        layer, bias = operands
        if layer != (len(self.operations) - 1, 0) or not isinstance(bias, np.ndarray):
            return False
        self.operations[-1] = replace(latest, operands=(*latest.operands, bias), place=place)
        return True

    def _reads_pixels(self, args: Any) -> bool:
        entries = [entry for value in args for entry in (value if isinstance(value, list | tuple) else [value])]
        return any(isinstance(entry, Tensor) and id(entry) in self._operands for entry in entries)

    def _take_parts(self, layer: str, place: str, whole: Tensor, parts: Iterable[Tensor]) -> None:
        """Write down one operation per part that a tensor falls into along an axis of its own."""
        for index, part in enumerate(parts):
            operands, where = (self.operand(whole),), f"{place}:{index}"
            attributes = {"part": index}
            self.operations.append(
                Operation(name=layer, kind="Slice", attributes=attributes, operands=operands, place=where)
            )
            self.know(part, (len(self.operations) - 1, 0))


class _Meter(_Watch):  # type: ignore[no-untyped-call]
    """Counts magnitudes of the outputs of chosen operations."""

    def __init__(self, wanted: Set[str]) -> None:
        super().__init__()
        self.found: dict[str, tuple[np.ndarray, float]] = {}
        self._wanted = wanted

    def start(self) -> None:
        """Begin with another image."""
        self._seen.clear()

    def take(self, name: str, layer: str, place: str, args: Any, output: Tensor) -> None:
        if place in self._wanted:
            self.add(place, output.numpy())

    def add(self, place: str, values: np.ndarray) -> None:
        """Count the magnitudes of a tensor."""
        magnitudes = np.abs(values.ravel())
        largest = float(magnitudes.max(initial=0.0))
        counts, known = self.found.get(place, (np.zeros(_BINS, np.int64), 0.0))
        widest = max(largest, known) or 1.0
        if known and widest > known:  # what was counted moves to the bins of the wider range
            moved = ((np.arange(_BINS) + 0.5) * (known / widest)).astype(np.int64)
            counts = np.bincount(moved, counts, minlength=_BINS).astype(np.int64)
        places = np.minimum(magnitudes * (_BINS / widest), _BINS - 1).astype(np.int64)
        self.found[place] = counts + np.bincount(places, minlength=_BINS), max(largest, known)


# --- folding ----------------------------------------------------------------------------------------------------------


def _fold_batch_norms(program: Program) -> Program:
    """Put every batch norm into the convolution whose output it reads; only it may read that."""
    readers = Counter(entry[0] for operation in program.operations for entry in operation.operands if _made(entry))
    folded: list[Operation] = []
    places: dict[int, int] = {}
    for index, operation in enumerate(program.operations):
        operands = tuple((places[entry[0]], entry[1]) if _made(entry) else entry for entry in operation.operands)
        if operation.kind != "BatchNormalization":
            places[index] = len(folded)
            folded.append(replace(operation, operands=_as_float64(operands)))
            continue
        source = operation.operands[0]
        conv = folded[places[source[0]]] if _made(source) else None
        if conv is None or conv.kind != "Conv" or not _made(source) or readers[source[0]] != 1:
            raise ExportError(f"{operation.name}: expected a batch norm of one convolution's output only.")
        places[index] = places[source[0]]
        gain, offset, mean, variance = (np.asarray(entry, np.float64) for entry in operation.operands[1:])
        scale = gain / np.sqrt(variance + operation.attributes["epsilon"])
        folded[places[index]] = replace(_scaled(conv, scale, offset - mean * scale), place=operation.place)
    results = {name: (places[entry[0]], entry[1]) if _made(entry) else entry for name, entry in program.results.items()}
    return Program(operations=tuple(folded), results=results)


def _fold_cat_norm(program: Program, head: NrdHead) -> Program:
    """Put the guidance's part of ``cat_norm`` into the convolution that gives the guidance."""
    source = program.results["guidance"]
    if not _made(source) or program.operations[source[0]].kind != "Conv":
        raise ExportError("guidance: expected the output of a convolution; the network computes otherwise.")
    scale, shift = _affine(head.cat_norm)
    operations = list(program.operations)
    operations[source[0]] = replace(_scaled(operations[source[0]], scale[2:], shift[2:]), place="")
    return Program(operations=tuple(operations), results=program.results)


def _scaled(conv: Operation, scale: np.ndarray, shift: np.ndarray) -> Operation:
    """Return a convolution whose output is multiplied and shifted by channel."""
    data, weight, bias = conv.operands
    weight = np.asarray(weight, np.float64) * scale[:, None, None, None]
    return replace(
        conv, operands=(data, weight, shift if bias is None else np.asarray(bias, np.float64) * scale + shift)
    )


def _affine(norm: nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    """Return factor and offset of a batch norm in evaluation mode, float64."""
    buffers = (norm.get_buffer("running_mean"), norm.get_buffer("running_var"))
    gain, offset, mean, variance = (tensor.detach().double().numpy() for tensor in (norm.weight, norm.bias, *buffers))
    scale = gain / np.sqrt(variance + norm.eps)
    return scale, offset - mean * scale


def _as_float64(operands: tuple[Operand, ...]) -> tuple[Operand, ...]:
    return tuple(entry.astype(np.float64) if isinstance(entry, np.ndarray) else entry for entry in operands)


def _made(operand: Operand) -> TypeGuard[tuple[int, int]]:
    return isinstance(operand, tuple)
