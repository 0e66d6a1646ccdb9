"""Train NRD and its baselines with one encoder and one schedule, and print the tables of ``docs/results.md``.

    python scripts/dev/compare_decoders.py --data CAMVID -o runs --plot docs/decoders.png --picture docs/masks.png

A run that is complete is not repeated; one that was interrupted goes on. Pictures show procedural scenes only.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nrd_trt import benchmark, build
from nrd_trt.data.overlay import blend, write_rgb
from nrd_trt.data.synthetic import street_scene
from nrd_trt.files import atomic_file
from nrd_trt.model import load_model
from nrd_trt.optional import require
from nrd_trt.specs import ControllerInit, Head, format_size
from nrd_trt.training.complexity import Complexity, complexity
from nrd_trt.training.loop import predict_mask
from nrd_trt.training.recipes import adapted, find_recipe
from nrd_trt.training.record import LAST, LOG, STATE
from nrd_trt.training.train import train
from nrd_trt.validation.evaluate import evaluate

# What is trained: head and controller_init of the recipe.
DECODERS: dict[str, tuple[Head, ControllerInit]] = {
    "nrd": ("nrd", "perceptron"),
    "deeplabv3plus": ("deeplabv3plus", "released"),
    "bilinear": ("bilinear", "released"),
    "nrd_released_init": ("nrd", "released"),
}
COLOURS = {"nrd": "#1f5fbf", "deeplabv3plus": "#c05a1f", "bilinear": "#6b7280", "nrd_released_init": "#7fb2e5"}
SIZES_HW = ((352, 480), (512, 1024))
HEADER = f"""\
| decoder | mIoU, mean ± std (seeds) | decoder GMAC | of DeepLabV3+'s | total GMAC | parameters | \
{" | ".join(f"latency {format_size(size_hw)}, ms" for size_hw in SIZES_HW)} |
|---|---|---|---|---|---|---|---|"""
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Of Student's distribution, 97.5 %, with 1, 2, … degrees of freedom."""
SCENE_SEEDS = (0, 3, 5)


def main() -> None:
    """Train what is missing, measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CamVid, with train/ and val/")
    parser.add_argument("-o", dest="out", type=Path, required=True, help="where the runs lie")
    parser.add_argument("--recipe", default="camvid_mobilenetv2")
    parser.add_argument("--channels", type=int, default=160, help="width of every head")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument(
        "--init-encoder", type=Path, help="checkpoint whose encoder all start from, e.g. an ImageNet one"
    )
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=list(DECODERS)[:3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arithmetic", default="bf16")
    parser.add_argument("--train-only", action="store_true", help="leave the tables to a quiet machine")
    parser.add_argument("--plot", type=Path, help="PNG of the loss curves")
    parser.add_argument("--picture", type=Path, help="PNG of masks on procedural scenes")
    args = parser.parse_args()
    runs = {(name, seed): args.out / f"{name}_{seed}" for seed in args.seeds for name in args.decoders}
    for (name, seed), folder in runs.items():
        train_one(args, name, seed, folder)
    if args.train_only:
        return
    scores = {key: evaluate(folder / LAST, args.data / "val").miou or 0.0 for key, folder in runs.items()}
    first = {name: runs[name, args.seeds[0]] / LAST for name in args.decoders}
    latencies = {size_hw: time_side_by_side(first, size_hw, args.out) for size_hw in SIZES_HW}
    print(HEADER)
    mious = {name: [scores[name, seed] for seed in args.seeds] for name in args.decoders}
    for name, path in first.items():
        print(row(name, mious[name], complexity(path), [latencies[size_hw][name] for size_hw in SIZES_HW]))
    if len(args.seeds) > 1:
        print("", *(comparison(one, other, mious) for one, other in itertools.combinations(mious, 2)), sep="\n")
    if args.plot:
        draw_curves(args.plot, runs)
    if args.picture:
        write_rgb(args.picture, picture(first))


def train_one(args: argparse.Namespace, name: str, seed: int, folder: Path) -> None:
    """Train one network; validate it once, at the end, so that no step is chosen by its score."""
    head, controller_init = DECODERS[name]
    recipe = adapted(find_recipe(args.recipe), head=head, seed=seed, steps=args.steps, evaluations=1)
    config = replace(recipe.config, channels=args.channels, controller_channels=args.channels)
    recipe = replace(recipe, config=config, controller_init=controller_init)
    resume = (folder / STATE).is_file()
    train(
        recipe, args.data, folder, arithmetic=args.arithmetic, threads=1, init_encoder=args.init_encoder, resume=resume
    )


def time_side_by_side(checkpoints: Mapping[str, Path], size_hw: tuple[int, int], out: Path) -> dict[str, float]:
    """Return median latencies in ONNX Runtime, called in turn."""
    bundles = {name: out / f"{name}_{format_size(size_hw)}.nrd" for name in checkpoints}
    for name, path in bundles.items():
        build(checkpoints[name], path, size=size_hw, precision="fp32", builder="onnxruntime", force=True)
    rows = benchmark(*bundles.values(), warmup=5, runs=30).rows
    return {name: row.latency.p50 for name, row in zip(bundles, rows, strict=True)}


def row(name: str, mious: Sequence[float], found: Complexity, latencies_ms: Sequence[float]) -> str:
    """Return one decoder's line of the table, in Markdown."""
    spread = statistics.stdev(mious) if len(mious) > 1 else 0.0
    single, latencies = ", ".join(f"{miou:.3f}" for miou in mious), " | ".join(f"{ms:.1f}" for ms in latencies_ms)
    cost = found.cost
    return (
        f"| {name} | {statistics.mean(mious):.3f} ± {spread:.3f} ({single}) | {cost.decoder / 1e9:.3f} | "
        f"{found.decoder_ratio:.1%} | {cost.total / 1e9:.2f} | {cost.parameters / 1e6:.2f} M | {latencies} |"
    )


def comparison(one: str, other: str, mious: Mapping[str, Sequence[float]]) -> str:
    """Say how far apart two decoders are, and whether these seeds tell them apart."""
    mean, margin = paired_difference(mious[one], mious[other])
    verdict = "" if abs(mean) > margin else ": these seeds do not tell them apart"
    return f"{one} - {other}: {mean:+.3f} ± {margin:.3f} (95 %, {len(mious[one])} seeds, paired){verdict}"


def paired_difference(ones: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Return the mean of ``ones - others``, paired by seed, and half the width of its 95 % t-interval.

    Beyond ten pairs the quantile of ten is taken, which makes the interval a little too wide.
    """
    differences = [one - other for one, other in zip(ones, others, strict=True)]
    quantile = T_QUANTILES[min(len(differences) - 1, len(T_QUANTILES)) - 1]
    return statistics.mean(differences), quantile * statistics.stdev(differences) / math.sqrt(len(differences))


def draw_curves(path: Path, runs: Mapping[tuple[str, int], Path]) -> None:
    """Draw every run's training loss."""
    figure = require("matplotlib.figure", extra="plot", purpose="--plot").Figure((8, 4), dpi=120)
    axes = figure.add_subplot()
    for (name, _), folder in runs.items():
        with (folder / LOG).open(newline="") as file:
            steps, losses = zip(*((int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)), strict=True)
        label = None if name in axes.get_legend_handles_labels()[1] else name
        axes.plot(steps, losses, color=COLOURS[name], linewidth=1.2, label=label)
    axes.set(xlabel="optimiser step", ylabel="training loss", ylim=(0, None))
    axes.legend(frameon=False)
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def picture(checkpoints: Mapping[str, Path]) -> np.ndarray:
    """Show procedural scenes, one per column, over the masks of each decoder; ``(H, W, 3) uint8``."""
    models = [load_model(path) for path in checkpoints.values()]
    scenes = [street_scene(seed, models[0].info.size_hw).image for seed in SCENE_SEEDS]
    rows = [np.hstack(scenes)]
    for model in models:
        masks = [predict_mask(model, scene) for scene in scenes]
        overlays = [blend(scene, mask, model.info.palette, 0.65) for scene, mask in zip(scenes, masks, strict=True)]
        rows.append(np.hstack(overlays))
    return np.vstack(rows)[::2, ::2]


if __name__ == "__main__":
    main()
