"""Whether a network draws anything at all: agreement with one that does not proves nothing. NumPy only.

Limits stand well between what was measured of trained and of other networks, on drawn scenes and CamVid frames: the
zoo's two checkpoints; the same networks as PyTorch initialises them, with constant theta, with theta times 0.001, and
with one class raised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

ONE_CLASS = 0.95
"""Share of the pixels from which one class is nearly everywhere: 0.25-0.35 where trained, 1 where collapsed."""
TIMES_CHANCE = 3.0
"""An mIoU below so many times that of chance: trained 4.9 times and more, others 0.7 to 2.8 times."""
GAIN = 0.2
"""And less of what chance leaves: it leaves little times to gain where classes are few. Trained 0.6 and more at
192x256, 0.16 at 64x96; others up to 0.08."""
SMALL_THETA = 0.01
"""Root mean square of theta: trained 0.36-0.41, at most 4e-4 where it is near zero; 1e-7 and less where not trained."""
CONSTANT_THETA = 0.1
"""Spread of theta over the locations of an image beside its size: trained 0.37-0.43, collapsed up to 0.045."""
_THEN = "agreement proves nothing about an engine where"


@dataclass(frozen=True, kw_only=True)
class Theta:
    """What the decode's weights are like, over the locations of one image.

    Attributes:
        size: Their root mean square.
        spread: Their standard deviation over the locations as a share of `size`; 0 where all are alike.
    """

    size: float
    spread: float

    @classmethod
    def of(cls, theta: np.ndarray) -> Theta:
        """Measure theta ``(P, h, w)``."""
        values = theta.reshape(len(theta), -1).astype(np.float64)
        size = float(np.sqrt(np.square(values).mean()))
        return cls(size=size, spread=float(np.sqrt(values.var(1).mean())) / size if size else 0.0)


def trivial(
    pixels: Mapping[str, int], *, miou: float | None, chance: float | None, theta: Theta | None = None
) -> Iterator[str]:
    """Yield one line per sign that a network draws nothing, or draws at random.

    Args:
        pixels: Pixels of its masks by class name.
        miou: Against labels; None without labels.
        chance: The mIoU of masks with the same share of each class, drawn at random; None without labels.
        theta: What a network with per-patch decode predicts, where it is known.
    """
    total, (name, most) = sum(pixels.values()), max(pixels.items(), key=lambda entry: entry[1], default=("", 0))
    if total and most >= ONE_CLASS * total:
        yield f"{_THEN} the network draws {name} on {most / total:.1%} of the pixels"
    if miou is not None and chance is not None and miou < min(TIMES_CHANCE * chance, chance + GAIN * (1 - chance)):
        yield f"{_THEN} the network's mIoU is {miou:.4f}, and that of its classes drawn at random {chance:.4f}"
    if theta is not None and theta.size < SMALL_THETA:
        yield f"{_THEN} the network predicts weights of the decode near zero (root mean square {theta.size:.2g})"
    elif theta is not None and theta.spread < CONSTANT_THETA:
        spread = f"they vary by {theta.spread:.1%}"
        yield f"{_THEN} the network predicts nearly the same weights of the decode everywhere ({spread})"
