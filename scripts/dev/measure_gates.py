"""Measure what sound files show, which the gates of masks and of stages must let pass, and print the table of the docs.

    python scripts/dev/measure_gates.py build/gates --data camvid/val --calibration camvid/train/images
    python scripts/dev/measure_gates.py build/gates --table

Both checkpoints of the zoo, in every precision and for int8 and fp8 by every recipe, at several sizes, against PyTorch
in fp32, in blocks of four images: drawn scenes of other seeds, and labelled frames. PyTorch itself runs them in 16 bits
as well. `--sound` measures the stages and ranges of the same files beside sound ones, on two images of each block. What
was measured is kept in the folder, and a run goes on where another one stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from nrd_trt.calibration.calibrator import Calibrator
from nrd_trt.data.folders import list_pairs, read_label
from nrd_trt.data.images import read_image
from nrd_trt.data.preprocessing import fit_image, normalise
from nrd_trt.data.samples import Sample
from nrd_trt.data.synthetic import street_scene
from nrd_trt.engine.record import PrecisionRecord
from nrd_trt.exporting.onnx_export import ExportOptions, export_onnx, exporter_record
from nrd_trt.exporting.precision import derive_precision
from nrd_trt.figures import json_values
from nrd_trt.graph.metadata import read_facts
from nrd_trt.graph.quantize import quantized_layers
from nrd_trt.model import load_model
from nrd_trt.model.network import Segmentor
from nrd_trt.runtime.engine import Engine
from nrd_trt.runtime.ort_runner import OrtRunner
from nrd_trt.specs import QUANTIZED, InputShape
from nrd_trt.validation.compare import Comparator, Reference
from nrd_trt.validation.references import torch_reference
from nrd_trt.validation.twin import compare_with_sound
from nrd_trt.zoo import checkpoint_path

NETWORKS = ("nrd_mobilenetv2_camvid", "nrd_r18_camvid")
RECIPES = ("percentile", "minmax", "entropy", "mse")
ONNX_FORMS = (
    *("fp32", "tf32", "fp16", "bf16"),
    *(f"{precision} {recipe}" for precision in QUANTIZED for recipe in RECIPES),
)
TORCH_FORMS = {"fp16 torch": torch.float16, "bf16 torch": torch.bfloat16}
SIZES = ((64, 96), (128, 192), (352, 480))
BLOCK = 4
FIRST_SEED = 1000

Mask = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure on."""

    folder: Path
    data: Path
    calibration: Path
    images: int
    blocks: int


def main() -> None:
    """Parse the arguments, measure what is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--size", action="append", choices=[f"{h}x{w}" for h, w in SIZES])
    parser.add_argument("--sound", action="store_true")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    rows = given.folder / ("sound.jsonl" if given.sound else "rows.jsonl")
    if not given.table:
        torch.set_num_threads(1)
        given.folder.mkdir(parents=True, exist_ok=True)
        options = Options(
            folder=given.folder,
            data=given.data,
            calibration=given.calibration,
            images=given.images,
            blocks=given.blocks,
        )
        for size_hw in SIZES:
            for network in NETWORKS:
                if not given.size or f"{size_hw[0]}x{size_hw[1]}" in given.size:
                    (measure_sound if given.sound else measure)(network, size_hw, options, rows)
    (print_sound if given.sound else print_table)([json.loads(line) for line in rows.read_text().splitlines()])


def measure(network: str, size_hw: tuple[int, int], options: Options, rows: Path) -> None:
    """Append one row per block and form that has none yet."""
    known = {tuple(json.loads(line)["key"]) for line in rows.read_text().splitlines()} if rows.exists() else set()
    model = load_model(checkpoint_path(network))
    size = f"{size_hw[0]}x{size_hw[1]}"
    wanted = [
        (form, kind, block)
        for kind in ("scenes", "frames")
        for block in range(options.blocks)
        for form in (*ONNX_FORMS, *TORCH_FORMS)
        if (network, size, form, kind, str(block)) not in known
    ]
    if not wanted:
        return
    print(f"{network} {size}: {len(wanted)} blocks", file=sys.stderr)
    files = {form: typed_file(model, network, size_hw, form, options) for form in ONNX_FORMS}
    references: dict[tuple[str, int], list[tuple[Sample, Reference]]] = {}
    for form in dict.fromkeys(form for form, _, _ in wanted):
        with drawn_by(model, files, form) as draw:
            for _, kind, block in (one for one in wanted if one[0] == form):
                if (kind, block) not in references:
                    with torch_reference(model) as predict:
                        samples = block_of(kind, block, size_hw, model, options)
                        references[kind, block] = [(sample, predict(sample)) for sample in samples]
                comparator = Comparator(model.info.class_names)
                for sample, reference in references[kind, block]:
                    comparator.add(reference, draw(sample.image), sample)
                found = vars(comparator.result())
                figures = {name: json_values(found[name]) for name in found if name not in ("pictures", "per_image")}
                with rows.open("a") as file:
                    key = (network, size, form, kind, str(block))
                    file.write(json.dumps({"key": key, **figures}) + "\n")


def measure_sound(network: str, size_hw: tuple[int, int], options: Options, rows: Path) -> None:
    """Append one row per block and file: its stages and ranges beside sound ones, whatever they are."""
    known = {tuple(json.loads(line)["key"]) for line in rows.read_text().splitlines()} if rows.exists() else set()
    model, size = load_model(checkpoint_path(network)), f"{size_hw[0]}x{size_hw[1]}"
    full = typed_file(model, network, size_hw, "fp32", options)
    for form in (form for form in ONNX_FORMS if form != "tf32"):
        file = typed_file(model, network, size_hw, form, options)
        precision, layers = read_facts(file).precision, quantized_layers(file)
        record = PrecisionRecord(
            asked=precision,
            found=None,
            kept_fp32=(),
            kept_because={},
            int8_layers=layers if precision == "int8" else (),
            layers=(),
            fp8_layers=layers if precision == "fp8" else (),
        )
        for kind in ("scenes", "frames"):
            for block in range(options.blocks):
                key = (network, size, form, kind, str(block))
                if key in known:
                    continue
                samples = list(block_of(kind, block, size_hw, model, options))[:2]
                images = {sample.name: sample.image for sample in samples}
                found = compare_with_sound(model, full, file, record, images, exporter=exporter_record(), threads=1)
                with rows.open("a") as written:
                    written.write(json.dumps({"key": key, **json_values(found)}) + "\n")


def print_sound(rows: Sequence[dict[str, Any]]) -> None:
    """Print the largest errors of every form and size, and how much farther from PyTorch than sound files they are."""
    for size in dict.fromkeys(row["key"][1] for row in rows):
        for form in dict.fromkeys(row["key"][2] for row in rows):
            found = [row for row in rows if row["key"][1:3] == [size, form]]
            if not found:
                continue
            shown: dict[str, float] = {}
            for row in found:
                base = {one["stage"]: one for one in row["sound"]}
                for part in ("exported", "sound", "twin"):
                    for one in row[part]:
                        kind = "mask" if one["stage"] == "mask" else "tensor"
                        shown[f"{part} {kind}"] = max(shown.get(f"{part} {kind}", 0), one["error"])
                        if kind != "mask":
                            shown[f"{part} channel"] = max(shown.get(f"{part} channel", 0), one["worst_channel_error"])
                for one in row["bundle"]:
                    sound = base[one["stage"]]
                    if one["stage"] != "preprocessing" and sound["error"]:
                        kind = "mask" if one["stage"] == "mask" else "tensor"
                        shown[f"times {kind}"] = max(shown.get(f"times {kind}", 0), one["error"] / sound["error"])
                    if one["stage"] not in ("preprocessing", "mask") and sound["worst_channel_error"]:
                        ratio = one["worst_channel_error"] / sound["worst_channel_error"]
                        shown["times channel"] = max(shown.get("times channel", 0), ratio)
                shown["range"] = max([shown.get("range", 0), *(one["loss"] for one in row["ranges"])])
            print(size, f"{form:<16}", len(found), {name: f"{value:.2g}" for name, value in shown.items()})


def typed_file(
    model: Segmentor, network: str, size_hw: tuple[int, int], form: str, options: Options
) -> onnx.ModelProto:
    """Export and derive a file, or read the one that was kept."""
    precision, _, recipe = form.replace("tf32", "fp32").partition(" ")
    size = f"{size_hw[0]}x{size_hw[1]}"
    path = options.folder / f"{network}-{size}-{precision}-{recipe}.onnx"
    if path.exists():
        return onnx.load(path)
    if precision == "fp32":
        made = export_onnx(model, ExportOptions(shape=InputShape.static(size_hw)))
    else:
        full = typed_file(model, network, size_hw, "fp32", options)
        calibrator = None
        if recipe:
            given: dict[str, Any] = {
                "precision": precision,
                "recipe": recipe,
                "images": options.images,
                "threads": 1,
                "progress": False,
            }
            calibrator = Calibrator(options.calibration, **given)
        images = [street_scene(seed, size_hw).image for seed in (7, 8)]
        made = derive_precision(full, precision, images, calibrator=calibrator, threads=1, progress=False)  # type: ignore[arg-type]
    path.write_bytes(made.SerializeToString(deterministic=True))
    return made


def block_of(kind: str, block: int, size_hw: tuple[int, int], model: Segmentor, options: Options) -> Iterator[Sample]:
    """Yield the labelled images of a block: scenes of the next seeds, or frames that lie far apart."""
    if kind == "scenes":
        for seed in range(FIRST_SEED + block * BLOCK, FIRST_SEED + (block + 1) * BLOCK):
            scene = street_scene(seed, size_hw)
            yield Sample(image=scene.image, restore=np.asarray, label=scene.label, name=f"scene {seed}")
        return
    pairs = list_pairs(options.data, None)
    apart = len(pairs) // BLOCK
    for image, label in [pairs[(place * apart + block * 2) % len(pairs)] for place in range(BLOCK)]:
        fitted = fit_image(read_image(image), InputShape.static(size_hw), model.info, "resize")
        classes, ignored = len(model.info.class_names), model.info.ignore_index
        values = read_label(label, num_classes=classes, ignore_index=ignored, image_hw=fitted.original_hw)
        yield Sample(image=fitted.image, restore=fitted.restore, label=values, name=image.name)


@contextmanager
def drawn_by(model: Segmentor, files: dict[str, onnx.ModelProto], form: str) -> Iterator[Mask]:
    """Open what draws masks in a form: ONNX Runtime, or PyTorch in 16 bits."""
    if form in TORCH_FORMS:

        def draw(image: np.ndarray) -> np.ndarray:
            with torch.inference_mode(), torch.autocast("cpu", TORCH_FORMS[form]):
                logits = model(torch.from_numpy(normalise(image[None], model.info)))
            enlarged = torch.nn.functional.interpolate(
                logits.float(), scale_factor=model.config.upsample, mode="bilinear", align_corners=False
            )
            return np.asarray(enlarged.argmax(1)[0].to(torch.uint8).numpy())

        yield draw
        return
    file = files[form]
    runner = OrtRunner(file, threads=1, tf32=form == "tf32")
    opened: AbstractContextManager[Engine] = Engine(runner, read_facts(file))
    with opened as engine:
        yield lambda image: np.asarray(engine.mask(image))


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print the lowest figure of every form and size."""
    print(f"{len(rows)} blocks, {zlib.crc32(json.dumps(rows, sort_keys=True).encode()):08x}")
    for size in dict.fromkeys(row["key"][1] for row in rows):
        for form in dict.fromkeys(row["key"][2] for row in rows):
            found = [row for row in rows if row["key"][1:3] == [size, form]]
            if not found:
                continue
            lowest = {
                name: min(row[name] for row in found)
                for name in ("pixel_agreement", "border_agreement", "boundary_between")
            }
            print(size, f"{form:<16}", len(found), {name: round(value, 4) for name, value in lowest.items()})


if __name__ == "__main__":
    main()
