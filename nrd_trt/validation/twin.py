"""A bundle's file against sound ones, derived anew from its checkpoint: what rounding excuses, and what nothing does.

Four files run on a few images and are compared with PyTorch in fp32, each one answering for the next:

1. The fp32 file, exported anew. Beyond the tolerance of fp32 the exporter, the runner or the preprocessing of this
   installation is wrong, and so are the bundles that it makes.
2. The *sound* file: that one in the bundle's precision, in 8 bits with ranges measured anew on these images. Beyond
   what sound files of trained networks show, this installation's passes are wrong, or 8 bits do not suit the network.
3. The *twin*: the same with the ranges of the bundle's file, which must compute what its twin does.
4. The bundle's file, which may be a stated margin farther from PyTorch than the sound file is. Ranges that are far off
   are found here, and by what each loses beside the one measured anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx

from nrd_trt.engine.record import PrecisionRecord
from nrd_trt.errors import CalibrationError, ConfigError
from nrd_trt.figures import RangeFigures, SoundComparison, StageFigures
from nrd_trt.graph.formats import NumberFormat
from nrd_trt.graph.metadata import ExporterRecord, read_facts
from nrd_trt.graph.network import file_network
from nrd_trt.graph.outputs import PREFIX, with_taps
from nrd_trt.graph.precision import to_precision, to_quantized
from nrd_trt.graph.quantize import QuantizationPlan, plan_quantization, quantized_layers
from nrd_trt.program import paired_operations
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.graph_io import first_mask
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import QUANTIZED, Precision
from nrd_trt.validation.rederive import least_lossy, loss, pick_magnitudes
from nrd_trt.validation.stages import PREPROCESSING, STAGES, TITLES, TOLERANCES, StageMeter, StageTolerance

if TYPE_CHECKING:
    from nrd_trt.model.network import Segmentor

Tensors = Mapping[str, np.ndarray]

BRIGHTER = 1.6
"""Factor of the values of an image; they end at 255."""

COMPARED_COUNT = 2
"""Number of images that are compared; their stages are held, and one session at a time."""

RANGES_KEPT = 5
"""Number of ranges that are named, those that lose most."""


@dataclass(frozen=True, kw_only=True)
class SoundLimits:
    """What is allowed of a precision; docs/validation.md has the evidence, `scripts/dev/measure_gates.py` measures it.

    Attributes:
        sound_mask: Largest share of pixels of a sound file's masks that differ from PyTorch's; `TOLERANCES` has its
            stages.
        margin: How many times the sound file's errors of a stage the bundle's file may have.
        mask_margin: The same of the share of pixels that differ.
        narrow_loss: How many times what the range measured anew loses a narrower one of the bundle's file may lose.
        wide_loss: The same of a wider one.
    """

    sound_mask: float
    margin: StageTolerance
    mask_margin: float
    narrow_loss: float = np.inf
    wide_loss: float = np.inf


_SAME_RANGES = StageTolerance(tensor=1.5, channel=1.5)  # the file is the sound one there, and its errors are equal
LIMITS: Mapping[Precision, SoundLimits] = {
    "fp32": SoundLimits(sound_mask=1e-4, margin=_SAME_RANGES, mask_margin=1.5),
    "fp16": SoundLimits(sound_mask=0.005, margin=_SAME_RANGES, mask_margin=1.5),
    "bf16": SoundLimits(sound_mask=0.04, margin=_SAME_RANGES, mask_margin=1.5),
    "int8": SoundLimits(
        sound_mask=0.1,
        margin=StageTolerance(tensor=2.5, channel=3.5),
        mask_margin=2.2,
        narrow_loss=6.0,
        wide_loss=3.2,
    ),
    "fp8": SoundLimits(
        sound_mask=0.1,
        margin=StageTolerance(tensor=2.5, channel=3.5),
        mask_margin=2.2,
        narrow_loss=6.0,
        wide_loss=3.2,
    ),
}
EXCITES = 0.7
"""Least `nrd_trt.model.stages.excitation` of an image that ranges are judged on: what moves the network little needs
little of a sound range. docs/validation.md has the evidence."""
SAME, ALIKE = 0.1, 2.0
"""How far a file may be from its twin, as a share of the twin's error. What one exporter and the same libraries made
is equal to the bit; what others made rounds at other places."""
FLOOR_PIXELS = 4
"""Pixels of a mask that may differ whatever their share: ties, which a sum in another order decides otherwise."""
_NEGLIGIBLE = 1e-3  # of a tensor's root mean square: losses below this are rounding of 16 bits


def compare_with_sound(
    model: Segmentor,
    full: onnx.ModelProto,
    file: onnx.ModelProto,
    record: PrecisionRecord,
    images: Mapping[str, np.ndarray],
    *,
    exporter: ExporterRecord | None,
    threads: int | None = None,
) -> SoundComparison:
    """Compare a bundle's file, and files derived anew, with the checkpoint and with each other.

    Args:
        model: The checkpoint, in evaluation mode, of the network that the file holds.
        full: Its export in fp32 in the form of the file, with both outputs.
        file: The bundle's ONNX file.
        record: What the bundle records of layers in 8 bits and nodes kept in fp32.
        images: At least one ``(h, w, 3) uint8`` by name, of which the first `COMPARED_COUNT` are compared; in 8 bits
            those that excite the network, and where none does, neither ranges nor stages are judged.
        exporter: What wrote the bundle's file, where that is known.
        threads: CPU threads of ONNX Runtime.
    """
    from nrd_trt.exporting.onnx_export import exporter_record

    precision = read_facts(file).precision
    limits = LIMITS[precision]
    chosen, unjudged = _choose(model, images, precision)
    shown = list(chosen.values())
    derived = _derive(full, file, record, shown, limits, threads)
    if unjudged:
        derived = replace(derived, sound=None, ranges=(), note="; ".join(filter(None, (unjudged, derived.note))))
    apart = _measure(
        model, {"exported": full, "sound": derived.sound, "twin": derived.twin, "bundle": file}, shown, threads
    )
    sound, twin = apart["sound"].figures(_fixed(precision)), apart["twin"].figures(_fixed(precision))
    share = SAME if exporter == exporter_record() else ALIKE
    found = SoundComparison(
        images=tuple(chosen),
        exported=apart["exported"].figures(_fixed("fp32")),
        sound=sound,
        bundle=apart["bundle"].figures(_beside(sound, limits.margin, limits.mask_margin)) if sound else (),
        twin=apart["bundle and twin"].figures(_beside(twin, StageTolerance(tensor=share, channel=share), share)),
        ranges=derived.ranges,
        note=derived.note,
        failures=(),
    )
    return replace(found, failures=tuple(_failures(found)))


def _choose(
    model: Segmentor, images: Mapping[str, np.ndarray], precision: Precision
) -> tuple[dict[str, np.ndarray], str]:
    """Return the first images, for 8 bits of those that excite the network most, and why it cannot be judged on them.

    The first of them comes once more and brighter, as overflow shows on bright images.
    """
    from nrd_trt.model.stages import excitation

    chosen, why = list(images), ""
    if precision in QUANTIZED:
        moved = {name: 1.0 if (share := excitation(model, image)) is None else share for name, image in images.items()}
        if exciting := [name for name, share in moved.items() if share >= EXCITES]:
            chosen = exciting
        else:
            chosen.sort(key=lambda name: -moved[name])
            why = (
                f"not judged: the ranges, and what {precision} costs at the stages; the images excite the network too "
                f"little: its features vary at most {max(moved.values()):.3f} times as much as in training, "
                f"{EXCITES} needed"
            )
    brighter = np.minimum(images[chosen[0]] * BRIGHTER, 255).astype(np.uint8)
    return {**{name: images[name] for name in chosen[:COMPARED_COUNT]}, f"{chosen[0]}, brighter": brighter}, why


@dataclass(frozen=True, kw_only=True)
class _Derived:
    """Files derived anew, as far as the record tells how."""

    sound: onnx.ModelProto | None = None
    twin: onnx.ModelProto | None = None
    ranges: tuple[RangeFigures, ...] = ()
    note: str = ""


def _derive(
    full: onnx.ModelProto,
    file: onnx.ModelProto,
    record: PrecisionRecord,
    images: list[np.ndarray],
    limits: SoundLimits,
    threads: int | None,
) -> _Derived:
    """Derive the sound file and the twin from the fp32 file."""
    precision, kept = read_facts(file).precision, frozenset(record.kept_fp32)
    if precision != "int8" and precision != "fp8":
        sound = full if precision == "fp32" else to_precision(full, precision, kept)
        return _Derived(sound=sound, twin=sound)
    try:
        plan = plan_quantization(full, record.quantized_layers or quantized_layers(file), record.target, precision)
        picked = pick_magnitudes(full, plan.tensors, images, threads)
        measured = {name: least_lossy(magnitudes, plan.format(name)) for name, magnitudes in picked.items()}
        sound = to_quantized(full, plan, measured, kept)
    except (ConfigError, CalibrationError) as exc:  # another version of torch names layers otherwise
        return _Derived(note=f"no sound {precision} file could be derived: {exc}")
    shared, held = held_ranges(sound, full, plan), held_ranges(file, full, plan)  # a Concat's tensors share theirs
    known = [name for name in plan.tensors if name in held]
    ranges = [_range(name, held[name], shared[name], picked[name], limits, plan.format(name)) for name in known]
    worst = tuple(sorted(ranges, key=lambda one: -one.loss / one.allowed)[:RANGES_KEPT])
    if record.quantizer == "modelopt":
        return _Derived(sound=sound, ranges=worst, note="Model Optimizer made the file, which has no twin here")
    if held.keys() != plan.tensors.keys():
        note = (
            f"the file has ranges of {len(held)} activations, {len(known)} of the {len(plan.tensors)} that its layers "
            "need in this version; they are judged by what the stages show"
        )
        return _Derived(sound=sound, ranges=worst, note=note)
    twin = to_quantized(full, plan, held, kept)
    return _Derived(sound=sound, twin=twin, ranges=worst)


def held_ranges(file: onnx.ModelProto, full: onnx.ModelProto, plan: QuantizationPlan) -> dict[str, float]:
    """Return the range of every activation that a file quantises, by the operations that read it in 8 bits.

    Args:
        file: Its nodes and tensors may have any names.
        full: The fp32 file of its network.
        plan: What should be quantised of `full`.

    Returns:
        Ranges by tensor of the plan; of activations that the plan does not have by ``another/LAYER``.
    """
    network, right = file_network(file), file_network(full)
    if network is None or right is None:
        return {}
    counterparts = dict(paired_operations(network.program, right.program))
    places = {operation.place: counterparts.get(index, -1) for index, operation in enumerate(right.program.operations)}
    made = {node.name: node.output[0] for node in full.graph.node if node.output}
    ranges = {reader: tensor.range for tensor in network.quantized for reader in tensor.readers}
    held: dict[str, float] = {}
    planned: set[tuple[int, int]] = set()
    for name, readers in plan.tensors.items():
        found = [(places.get(made[node], -1), operand) for node, operand in readers]
        planned |= set(found)
        limits = [ranges.get(reader, np.nan) for reader in found]
        held |= {name: limits[0]} if np.isfinite(limits).all() else {}
    extra = [tensor for tensor in network.quantized if planned.isdisjoint(tensor.readers)]
    return held | {f"another/{tensor.name}": tensor.range for tensor in extra}


def _range(
    name: str, held: float, measured: float, magnitudes: np.ndarray, limits: SoundLimits, numbers: NumberFormat
) -> RangeFigures:
    least = _NEGLIGIBLE * float(np.sqrt(np.square(magnitudes).mean()))
    losses = [float(np.hypot(loss(magnitudes, limit, numbers=numbers), least)) for limit in (held, measured)]
    return RangeFigures(
        tensor=name,
        held=held,
        measured=measured,
        loss=losses[0] / losses[1] if losses[1] else 1.0,
        allowed=limits.wide_loss if held > measured else limits.narrow_loss,
    )


class _Apart:
    """Accumulates how far two forms of a network are apart, stage by stage."""

    def __init__(self) -> None:
        self._meters: dict[str, StageMeter] = {}
        self._flipped = self._pixels = 0
        self._other_shape: set[str] = set()

    def add(self, want: Tensors, got: Tensors) -> None:
        """Add one image."""
        for stage in STAGES[:-1]:
            if stage in want and stage in got:
                meter = self._meters.setdefault(stage, StageMeter(len(want[stage])))
                if want[stage].shape == got[stage].shape:
                    meter.add(want[stage], got[stage])
                else:
                    self._other_shape.add(stage)
        same = want["mask"].shape == got["mask"].shape
        self._flipped += int((want["mask"] != got["mask"]).sum()) if same else want["mask"].size
        self._pixels += want["mask"].size

    def figures(self, allowed: Callable[[str], StageTolerance]) -> tuple[StageFigures, ...]:
        """Return the figures of every stage; none where nothing was added."""
        if not self._pixels:
            return ()
        share, tolerance = self._flipped / self._pixels, allowed("mask").tensor + FLOOR_PIXELS / self._pixels
        mask = StageFigures(stage="mask", error=share, tolerance=tolerance, within=share <= tolerance)
        stages = (meter.figures(stage, allowed(stage)) for stage, meter in self._meters.items())
        return (
            *(replace(one, error=None, within=False) if one.stage in self._other_shape else one for one in stages),
            mask,
        )


def _measure(
    model: Segmentor, files: Mapping[str, onnx.ModelProto | None], images: list[np.ndarray], threads: int | None
) -> dict[str, _Apart]:
    """Run the files beside PyTorch, one after the other; a file that stands under several names runs once.

    A session takes many times the memory of an image's stages, so those are held instead: PyTorch's and the twin's.
    """
    from nrd_trt.model.stages import predict_stages

    apart = {name: _Apart() for name in (*files, "bundle and twin")}
    wanted, twins = [predict_stages(model, image) for image in images], list[Tensors]()
    for file in {id(file): file for file in files.values() if file is not None}.values():
        names = [name for name, other in files.items() if other is file]
        for index, (want, found) in enumerate(zip(wanted, _stages(file, images, threads), strict=True)):
            for name in names:
                apart[name].add(want, found)
            if "twin" in names:
                twins.append(found)
            if "bundle" in names and twins:
                apart["bundle and twin"].add(twins[index], found)
    return apart


def _stages(file: onnx.ModelProto, images: Sequence[np.ndarray], threads: int | None) -> Iterator[Tensors]:
    """Open a file with taps, and yield the stages of every image."""
    with Engine(OrtRunner(with_taps(file), threads=threads), read_facts(file)) as engine:
        for image in images:
            yield stages_of_file(engine, image)


def stages_of_file(engine: Engine, image: np.ndarray) -> dict[str, np.ndarray]:
    """Run a file with taps on one image and return its stages without the batch axis."""
    feed = engine.feed(image)
    outputs = engine.runner.infer(feed)
    stages = {name.removeprefix(PREFIX): array[0] for name, array in outputs.items()}
    if engine.graph.input_form == "float":
        stages["preprocessing"] = feed["image"][0]
    return {**stages, "mask": first_mask(outputs, engine.graph)}


def _fixed(precision: Precision) -> Callable[[str], StageTolerance]:
    """Allow what sound files of a precision show."""

    def allowed(stage: str) -> StageTolerance:
        if stage == "mask":
            share = LIMITS[precision].sound_mask
            return StageTolerance(tensor=share, channel=share)
        return PREPROCESSING if stage == "preprocessing" else TOLERANCES[precision]

    return allowed


def _beside(
    others: tuple[StageFigures, ...], times: StageTolerance, mask_times: float
) -> Callable[[str], StageTolerance]:
    """Allow so many times what another file shows at each stage, beyond what fp32 may show."""
    known, floor = {one.stage: one for one in others}, _fixed("fp32")

    def allowed(stage: str) -> StageTolerance:
        least, other = floor(stage), known[stage]
        return StageTolerance(
            tensor=least.tensor + (mask_times if stage == "mask" else times.tensor) * (other.error or 0.0),
            channel=least.channel + times.channel * (other.worst_channel_error or 0.0),
        )

    return allowed


def _failures(found: SoundComparison) -> Iterator[str]:
    """Yield one line per comparison that is beyond what is allowed."""
    here = "this installation is at fault, and not the bundle alone"
    if line := _first(found.exported):
        yield f"the checkpoint exported anew in fp32 is not PyTorch's network: {line}; {here}"
    if line := _first(found.sound):
        yield (
            f"a file derived anew in the bundle's precision is too far from PyTorch: {line}; {here}, or the network "
            "loses too much in this precision"
        )
    if line := _first(found.twin):
        yield f"the file does not compute what the checkpoint gives in its own form and ranges: {line}"
    if line := _first(found.bundle):
        yield f"the file is farther from PyTorch than a sound one explains: {line}"
    for one in found.ranges:
        if not one.loss <= one.allowed:
            yield (
                f"the range of {one.tensor} is {one.held:.4g}, which loses {one.loss:.3g} times what "
                f"{one.measured:.4g} does, at most {one.allowed:g} times allowed"
            )


def _first(stages: tuple[StageFigures, ...]) -> str | None:
    """Describe the first stage beyond what is allowed, in the order of the data."""
    for one in sorted(stages, key=lambda figures: STAGES.index(figures.stage)):
        if not one.within:
            title = TITLES.get(one.stage, one.stage)
            if one.error is None:
                values = f"{one.not_finite} values that are not finite" if one.not_finite else "another shape"
                return f"stage {title} has {values}"
            if one.worst_channel_error is not None and one.error <= one.tolerance:
                return (
                    f"channel {one.worst_channel} of stage {title} is off by {one.worst_channel_error:.2e}, at most "
                    f"{one.channel_tolerance:.2e} allowed"
                )
            return f"stage {title} is off by {one.error:.2e}, at most {one.tolerance:.2e} allowed"
    return None
