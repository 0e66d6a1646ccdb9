"""Train short runs that each lack one thing the CamVid recipe has, and print the table of ``docs/results.md``.

    python scripts/dev/ablate.py camvid_mobilenetv2 --data CAMVID --without-drive 0006R0 -o runs --init-encoder E.pth

One drive is left out of training and scored at the end of each run: neither the choice of a recipe nor that of a step
sees CamVid's validation frames. A run that is complete is not repeated; one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nrd_trt.training.recipes import Recipe, find_recipe
from nrd_trt.training.record import LAST, STATE
from nrd_trt.training.train import train
from nrd_trt.validation.evaluate import evaluate


def _seen(**changes: object) -> Callable[[Recipe], Recipe]:
    """A change of how samples are made."""
    return lambda recipe: replace(recipe, augmentation=replace(recipe.augmentation, **changes))  # type: ignore[arg-type]


def _with(**changes: object) -> Callable[[Recipe], Recipe]:
    return lambda recipe: replace(recipe, **changes)  # type: ignore[arg-type]


CHANGES: dict[str, Callable[[Recipe], Recipe]] = {
    "the recipe": _with(),
    "AdamW for all, no Muon": _with(optimizer="adamw"),
    "no auxiliary head": _with(aux_weight=0.0),
    "no average of the weights": _with(ema=0.0),
    "scale 0.8-1.25": _seen(scale_range=(0.8, 1.25)),
    "scale 0.5-2": _seen(scale_range=(0.5, 2.0)),
    "colour jitter of 30 % only, no blur": _seen(colour="jitter", blur=0.0),
    "theta from zero, as released": _with(controller_init="released"),
    "20 % procedural scenes": _with(synthetic_share=0.2),
    "the encoder at the full rate": _with(encoder_rate=1.0),
    "a random encoder": _with(encoder_rate=1.0),
}
FROM_SCRATCH = "a random encoder"


def main() -> None:
    """Train what is missing, then score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data", type=Path, required=True, help="CamVid, with train/")
    parser.add_argument("--without-drive", required=True, help="how the names of the frames begin that are scored")
    parser.add_argument("-o", dest="out", type=Path, required=True, help="where the runs lie")
    parser.add_argument("--init-encoder", type=Path, help="checkpoint of an ImageNet encoder")
    parser.add_argument("--encoder-rate", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--arithmetic", default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    data = left_out(args.data, args.without_drive, args.out / "data")
    base = replace(find_recipe(args.recipe), steps=args.steps, evaluations=1, encoder_rate=args.encoder_rate)
    scores: dict[str, list[float]] = {}
    for seed in args.seeds:
        for name in args.only:
            folder = args.out / f"{name.replace(' ', '_').replace('%', 'percent')}_{seed}"
            train(
                replace(CHANGES[name](base), seed=seed),
                data,
                folder,
                init_encoder=None if name == FROM_SCRATCH else args.init_encoder,
                arithmetic=args.arithmetic,
                threads=args.threads,
                resume=(folder / STATE).is_file(),
            )
            scores.setdefault(name, []).append(evaluate(folder / LAST, data / "val").miou or 0.0)
            print(f"{name}, seed {seed}: {scores[name][-1]:.4f}", flush=True)
    print("\n| run | mIoU of the drive left out, mean (seeds) | against the recipe |\n|---|---|---|")
    for name, mious in scores.items():
        difference = statistics.mean(mious) - statistics.mean(scores[next(iter(scores))])
        single = ", ".join(f"{miou:.3f}" for miou in mious)
        print(f"| {name} | {statistics.mean(mious):.3f} ({single}) | {difference:+.3f} |")


def left_out(data: Path, drive: str, folder: Path) -> Path:
    """Link the training frames into a folder whose validation frames are those of one drive; return it."""
    for kind in ("images", "labels"):
        for file in sorted((data / "train" / kind).iterdir()):
            part = "val" if file.name.startswith(drive) else "train"
            link = folder / part / kind / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(file.resolve())
    return folder


if __name__ == "__main__":
    main()
