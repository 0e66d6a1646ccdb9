"""Training samples: labelled images mixed with procedural scenes, cut into batches. NumPy only, no torch.

A sample depends on the seed and its number alone, so a resumed run goes on with the very same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from nrd_trt.data.augment import random_sample
from nrd_trt.data.classes import CAMVID_CLASSES
from nrd_trt.data.folders import IGNORE, list_pairs, read_image, read_label
from nrd_trt.data.synthetic import Scene, street_scene
from nrd_trt.errors import ConfigError
from nrd_trt.specs import ModelInfo
from nrd_trt.train.recipes import Recipe

Pair = tuple[Path, Path]

FIRST_SCENE = 100_000
"""Scenes with lower seeds are never trained on."""
_SCENES = 512
_COUNTED_LABELS = 500


def split_pairs(data: Path) -> tuple[list[Pair], list[Pair]]:
    """List the labelled images to train on and to validate on.

    Args:
        data: A folder with ``train/`` and ``val/``, each with ``images/`` and ``labels/``; or one such folder
            alone, of which every tenth image is then kept for validation.

    Returns:
        Pairs ``(image, label)`` of both parts, neither empty.

    Raises:
        ConfigError: A folder is missing or empty, or an image has no label.
    """
    if (data / "train").is_dir() and (data / "val").is_dir():
        return list_pairs(data / "train"), list_pairs(data / "val")
    pairs = list_pairs(data)
    if len(pairs) < 2:
        raise ConfigError(f"{data}: expected at least two labelled images, got {len(pairs)}; add more.")
    kept = set(pairs[::10])
    return [pair for pair in pairs if pair not in kept], pairs[::10]


def read_pair(pair: Pair, info: ModelInfo) -> tuple[np.ndarray, np.ndarray]:
    """Read image ``(H, W, 3) uint8`` RGB and label ``(H, W) uint8`` with 255 for ignored pixels.

    Raises:
        ConfigError: A file is unreadable, or the label has a value out of range.
        ShapeError: The two differ in size.
    """
    image = read_image(pair[0])
    size_hw = (image.shape[0], image.shape[1])
    label = read_label(pair[1], num_classes=len(info.class_names), ignore_index=info.ignore_index, image_hw=size_hw)
    return image, label


def class_weights(pairs: Sequence[Pair], info: ModelInfo) -> np.ndarray:
    """Weigh classes by the inverse root of their pixels' share.

    At most 500 labels, evenly spread, are counted.

    Args:
        pairs: ``(image, label)`` paths.
        info: Classes and ignored value.

    Returns:
        ``(K,) float32`` in 0.4-3; the class of median share has weight 1, as has one without pixels.

    Raises:
        ConfigError: A file is unreadable, or a label has a value out of range.
        ShapeError: An image and its label differ in size.
    """
    counts = np.zeros(IGNORE + 1)
    for pair in pairs[:: -(-len(pairs) // _COUNTED_LABELS)]:
        counts += np.bincount(read_pair(pair, info)[1].ravel(), minlength=IGNORE + 1)
    counts = counts[: len(info.class_names)]
    present = counts > 0
    weights = np.ones(len(counts), np.float32)
    if present.any():
        weights[present] = np.sqrt(np.median(counts[present]) / counts[present]).clip(0.4, 3.0)
    return weights


class SampleStream:
    """The endless, seeded sequence of training batches of one recipe."""

    def __init__(self, recipe: Recipe, pairs: Sequence[Pair]) -> None:
        """Prepare the stream.

        Raises:
            ConfigError: The recipe mixes procedural scenes, which have CamVid's classes, with other classes.
        """
        if recipe.synthetic_share and recipe.info.class_names != CAMVID_CLASSES:
            raise ConfigError(
                f"recipe {recipe.name}: procedural scenes have the CamVid classes, the recipe has others; "
                "set synthetic_share to 0."
            )
        self.recipe = recipe
        self.pairs = pairs

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the batch of one step.

        Returns:
            Images ``(batch, 3, *crop_hw) float32``, normalised, and labels ``(batch, *crop_hw) uint8``.

        Raises:
            ConfigError: A file is unreadable, or a label has a value out of range.
            ShapeError: An image and its label differ in size.
        """
        first = step * self.recipe.batch
        images, labels = zip(*(self._sample(first + i) for i in range(self.recipe.batch)), strict=True)
        return np.stack(images), np.stack(labels)

    def _sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        recipe = self.recipe
        rng = np.random.default_rng((recipe.seed, index))
        if rng.random() < recipe.synthetic_share:
            scene = _scene(FIRST_SCENE + int(rng.integers(_SCENES)), recipe.info.size_hw)
            image, label = scene.image, scene.label
        else:
            image, label = read_pair(self.pairs[int(rng.integers(len(self.pairs)))], recipe.info)
        return random_sample(
            image,
            label,
            recipe.crop_hw,
            rng,
            info=recipe.info,
            scale_range=recipe.scale_range,
            jitter=recipe.jitter,
        )


@lru_cache(maxsize=_SCENES)
def _scene(seed: int, size_hw: tuple[int, int]) -> Scene:
    return street_scene(seed, size_hw)
