"""What an ONNX file says about itself, so that a bare file can be built and run; onnx itself is not loaded."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from nrd_trt.errors import ExportError
from nrd_trt.json_files import decode_json
from nrd_trt.specs import (
    CheckpointOptions,
    DecodeSpec,
    GraphOutput,
    InputForm,
    InputShape,
    MaskEncoding,
    ModelInfo,
    OutputName,
    Precision,
    Quantizer,
    Target,
)

if TYPE_CHECKING:
    import onnx

_PREFIX = "nrd_trt."
_CHOICES = f"{_PREFIX}choices"


@dataclass(frozen=True, kw_only=True)
class ExporterRecord:
    """What wrote the ONNX file.

    Attributes:
        revision: Counts the changes of this toolkit's exporter that change a file.
        torch: Version of PyTorch, whose exporter traced the network.
        onnx: Version of onnx.
        onnxscript: Version of onnxscript, which PyTorch's exporter uses.
    """

    revision: int
    torch: str
    onnx: str
    onnxscript: str | None


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """Facts that travel in the file's ``metadata_props``."""

    info: ModelInfo
    decode: DecodeSpec | None  # None for a network without per-patch decode
    shape: InputShape
    input_form: InputForm
    output: GraphOutput
    encoder: str
    head: str
    checkpoint_sha256: str | None = None
    precision: Precision = "fp32"
    upsample: int = 4  # from the logits' size to the mask's
    mask_encoding: MaskEncoding = "uint8"
    exporter: ExporterRecord | None = None
    options: CheckpointOptions | None = None  # what was said of the checkpoint beyond its file

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @property
    def outputs(self) -> tuple[OutputName, ...]:
        """Names of the graph's outputs."""
        return tuple(name for name in get_args(OutputName) if name in self.output.replace("both", "mask,logits"))

    @property
    def image_range(self) -> tuple[tuple[int, ...], ...]:
        """Smallest, usual and largest shape of the input ``image``."""
        axis = 3 if self.input_form == "uint8" else 1
        extents = (self.shape.batch, self.shape.height, self.shape.width)
        ranges = [[getattr(extent, which) for extent in extents] for which in ("min", "opt", "max")]
        return tuple((*sizes[:axis], 3, *sizes[axis:]) for sizes in ranges)  # 3 colours


@dataclass(frozen=True, kw_only=True)
class TypeChoices:
    """What was chosen when a file was typed; it travels in ``metadata_props`` too, so that it can be derived anew.

    Attributes:
        kept_fp32: Nodes kept in fp32, each with the reason.
        int8_layers: Layers that compute in int8.
        ranges: Largest magnitude that 8 bits represent of each activation; None where there is none, or it is not
            known.
        quantizer: What placed the Q/DQ pairs; None likewise.
        target: What a quantised file was made for.
        fp8_layers: Layers that compute in fp8.
    """

    kept_fp32: Mapping[str, str] = field(default_factory=dict)
    int8_layers: tuple[str, ...] = ()
    ranges: Mapping[str, float] | None = None
    quantizer: Quantizer | None = None
    target: Target = "gpu"
    fp8_layers: tuple[str, ...] = ()


def output_of(names: Collection[OutputName]) -> GraphOutput:
    """Return how `GraphFacts` says outputs; the logits alone, or the mask and any others."""
    text: GraphOutput = ",".join(name for name in get_args(OutputName) if name in names)  # type: ignore[assignment]
    return "both" if text == "mask,logits" else text  # type: ignore[comparison-overlap]


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file; what it says is not checked.

    Raises:
        ExportError: It is absent or no ONNX file.
    """
    import onnx

    try:
        model = onnx.load(path)
        _check_texts(model)
        return model
    except Exception as exc:  # protobuf's and onnx's errors have no common base
        raise ExportError(f"{path}: expected an ONNX file, cannot read it ({exc}); export it again.") from exc


def load_checked(path: Path) -> onnx.ModelProto:
    """Read an ONNX file and check that it is a valid one.

    Raises:
        ExportError: It is not.
    """
    import onnx

    model = load_onnx(path)
    try:
        onnx.checker.check_model(model, full_check=True)  # sizes, too: those of a run are those that the file tells
        for tensor in _tensors(model):  # which the checker does not look into
            onnx.numpy_helper.to_array(tensor)
    except Exception as exc:  # protobuf's and onnx's errors have no common base
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise ExportError(
            f"{path}: expected an ONNX file, got one that is not valid ({reason}); export it again."
        ) from exc
    return model


def _check_texts(message: Any) -> None:  # protobuf's bindings differ in the class of messages
    """Raise `ValueError` where a text is no UTF-8; protobuf gives it as bytes, which no reader of names expects."""
    for described, value in message.ListFields():
        single = isinstance(value, (str, bytes, int, float)) or hasattr(value, "ListFields")
        values = [value] if single else value
        if described.type == described.TYPE_STRING and any(isinstance(text, bytes) for text in values):
            raise ValueError(f"{described.full_name} is no UTF-8")
        if described.type == described.TYPE_MESSAGE:
            for inner in values:
                _check_texts(inner)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the constants of a file: those of its graph, and those that nodes hold."""
    yield from model.graph.initializer
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        yield from (entry.t for entry in node.attribute if entry.HasField("t"))


def write_facts(model: onnx.ModelProto, facts: GraphFacts) -> None:
    """Replace the file's metadata by `facts`, one JSON value per property; the choices of its types stay."""
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key == _CHOICES]
    del model.metadata_props[:]
    for key, text in kept:
        model.metadata_props.add(key=key, value=text)
    for key, value in sorted(facts.to_dict().items()):
        model.metadata_props.add(key=_PREFIX + key, value=json.dumps(value, sort_keys=True))


def read_facts(model: onnx.ModelProto) -> GraphFacts:
    """Return the facts of a file that this toolkit exported.

    Raises:
        ExportError: The file carries none, or not these.
    """
    found = {
        entry.key.removeprefix(_PREFIX): entry.value for entry in model.metadata_props if entry.key.startswith(_PREFIX)
    }
    try:
        return msgspec.convert({key: decode_json(value, object) for key, value in found.items()}, GraphFacts)
    except ValueError as exc:
        raise ExportError(
            f"the ONNX file does not carry this toolkit's metadata ({exc}); export it again with nrd_trt.export."
        ) from exc


def write_choices(model: onnx.ModelProto, choices: TypeChoices) -> None:
    """Let a file say how its types were chosen."""
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != _CHOICES]
    del model.metadata_props[:]
    for key, text in [(_CHOICES, json.dumps(asdict(choices), sort_keys=True)), *others]:
        model.metadata_props.add(key=key, value=text)


def read_choices(model: onnx.ModelProto) -> TypeChoices | None:
    """Return how a file's types were chosen; None for one in fp32, and where an earlier version wrote the file.

    Raises:
        ExportError: The file says something else there.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == _CHOICES), None)
    try:
        return None if text is None else decode_json(text, TypeChoices)
    except ValueError as exc:
        raise ExportError(
            f"the ONNX file does not tell how its types were chosen ({exc}); export it again with nrd_trt.export."
        ) from exc


def with_precision(model: onnx.ModelProto, precision: Precision) -> None:
    """Record the precision of a derived file."""
    write_facts(model, replace(read_facts(model), precision=precision))
