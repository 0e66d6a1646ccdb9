"""Store the last weights of a CamVid run in the zoo, in 16 bits, with a card of figures measured on what was stored.

python scripts/dev/publish_zoo.py RUN nrd_r18_camvid --data CAMVID --command "nrd-trt train …"
"""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from nrd_trt.data.synthetic import street_clip
from nrd_trt.model import load_model
from nrd_trt.model.checkpoint import save_checkpoint
from nrd_trt.model.network import Segmentor
from nrd_trt.specs import format_size
from nrd_trt.training.complexity import Complexity, complexity
from nrd_trt.training.loop import predict_mask
from nrd_trt.training.recipes import Recipe, find_recipe
from nrd_trt.training.record import LAST, LOG
from nrd_trt.validation.evaluate import Evaluation, evaluate
from nrd_trt.validation.metrics import confusion_matrix, mean_iou, pixel_agreement

ZOO = Path("nrd_trt/zoo")
CLIP_SEEDS = range(4)
CLIP_FRAMES = 15


def main() -> None:
    """Store one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that nrd-trt train wrote")
    parser.add_argument("name", help="name in the zoo")
    parser.add_argument("--data", type=Path, required=True, help="CamVid, with train/ and val/")
    parser.add_argument("--command", required=True, help="what trained it")
    args = parser.parse_args()
    with safe_open(args.run / LAST, "pt") as file:
        facts = {key: value for key, value in file.metadata().items() if not key.startswith("nrd_trt.")}
    target = ZOO / f"{args.name}.safetensors"
    save_checkpoint(load_model(args.run / LAST), target, half=True, extra=facts)
    model = load_model(target)
    card = Card(
        target=target,
        recipe=find_recipe(facts["recipe"]),
        facts=facts,
        command=args.command,
        hours=float((args.run / LOG).read_text().split()[-1].split(",")[3]) / 3600,
        cost=complexity(target),
        camvid=evaluate(target, args.data / "val"),
        clip=evaluate_clip(model),
    )
    target.with_suffix(".md").write_text(card.text())
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, mIoU {card.camvid.miou:.4f}")


def evaluate_clip(model: Segmentor) -> tuple[float, float]:
    """Return mIoU and pixel accuracy on procedural clips that training did not see."""
    matrix = np.zeros((model.config.num_classes,) * 2, np.int64)
    for seed in CLIP_SEEDS:
        for frame in street_clip(seed, model.info.size_hw, frames=CLIP_FRAMES):
            matrix += confusion_matrix(frame.label, predict_mask(model, frame.image), model.config.num_classes)
    return mean_iou(matrix) or 0.0, pixel_agreement(matrix) or 0.0


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says about a checkpoint."""

    target: Path
    recipe: Recipe
    facts: dict[str, str]
    command: str
    hours: float
    cost: Complexity
    camvid: Evaluation
    clip: tuple[float, float]

    def text(self) -> str:
        """Return the card as Markdown."""
        recipe, config, cost = self.recipe, self.cost.config, self.cost
        crop, scale = format_size(recipe.augmentation.crop_hw), recipe.augmentation.scale_range
        rows = {
            "network": f"NRD head (channels {config.channels}, c1 {config.c1_channels}, d = {config.hidden}, "
            f"m = {config.guidance_channels}, f = {config.patch}) on {config.encoder}; K = {config.num_classes}",
            "file": f"`{self.target.name}`, 16-bit storage, {self.target.stat().st_size / 1e6:.1f} MB, "
            f"{cost.cost.parameters / 1e6:.2f} M parameters",
            "input": f"RGB, ImageNet mean and standard deviation, {format_size(cost.size_hw)}",
            "multiply-adds": f"{cost.cost.total / 1e9:.2f} G at {format_size(cost.size_hw)}, of which the decoder "
            f"{cost.cost.decoder / 1e9:.2f} G ({cost.decoder_ratio:.1%} of a DeepLabV3+ decoder of the same widths)",
            "data": "CamVid training frames (367, 480×360; CC BY-NC 4.0) with "
            f"{recipe.synthetic_share:.0%} procedural street scenes of this toolkit",
            "recipe": f"`{recipe.name}`: from scratch, {self.facts['step']} steps of {recipe.batch} crops of {crop}, "
            f"scale {scale[0]}–{scale[1]}, Muon {recipe.muon_lr} and AdamW {recipe.lr}, poly {recipe.power}, warm-up "
            f"{recipe.warmup}, auxiliary head {recipe.aux_weight}, class weights, EMA {recipe.ema}, seed "
            f"{self.facts['seed']}",
            "command": f"`{self.command}`",
            "time": f"{self.hours:.1f} h on one CPU core",
        }
        names = [name for name, value in self.camvid.per_class_iou.items() if value is not None]
        figures = [f"{self.camvid.per_class_iou[name]:.3f}" for name in names]
        table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
        return _TEMPLATE.format(
            name=self.target.stem,
            table=table,
            frames=self.camvid.images,
            size=format_size(cost.size_hw),
            miou=self.camvid.miou,
            accuracy=self.camvid.pixel_accuracy,
            names=" | ".join(names),
            line="|".join(["---"] * len(names)),
            figures=" | ".join(figures),
            clips=len(CLIP_SEEDS),
            clip_frames=CLIP_FRAMES,
            clip_miou=self.clip[0],
            clip_accuracy=self.clip[1],
        )


_TEMPLATE = textwrap.dedent(
    """\
    # {name}

    | | |
    |---|---|
    {table}

    ## Figures

    Measured on the stored 16-bit file in PyTorch fp32 (`nrd-trt evaluate`): one confusion matrix over the {frames}
    CamVid validation frames, image resized to {size}, mask brought back to 360x480 (nearest), void ignored.

    **mIoU {miou:.3f}, pixel accuracy {accuracy:.3f}**

    | {names} |
    |{line}|
    | {figures} |

    On {clips} procedural clips of {clip_frames} frames that training did not see: mIoU {clip_miou:.3f}, pixel accuracy
    {clip_accuracy:.3f}.

    Read these with care: the validation frames are one sequence of which the training split also has frames, so the
    figure is optimistic for any other street. The stored weights are those of the last step (their moving average),
    not the best of several validations.

    ## Licence

    The weights are trained on CamVid (CC BY-NC 4.0, personal and research use) and are for non-commercial use, like
    their data. The code is Apache-2.0.
    """
)


if __name__ == "__main__":
    main()
