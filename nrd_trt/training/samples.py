"""Training samples: labelled images mixed with procedural scenes, cut into batches. NumPy only, no torch.

A sample depends on the seed and its number alone: a resumed run goes on with the very same batches, and so do other
numbers of workers, processes or micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from nrd_trt.data.augment import random_sample
from nrd_trt.data.classes import CAMVID_CLASSES
from nrd_trt.data.datasets import SYNTHETIC, Pair, Split, find_split
from nrd_trt.data.folders import IGNORE, read_label
from nrd_trt.data.images import read_image
from nrd_trt.data.synthetic import Scene, street_scene
from nrd_trt.errors import ConfigError
from nrd_trt.training.recipes import Recipe

Sample = tuple[np.ndarray, np.ndarray]

FIRST_SCENE = 100_000
"""Scenes with lower seeds are never trained on."""
_SCENES = 512
_VALIDATION_SCENES = range(1000, 1020)
_COUNTED_LABELS = 500


class Samples:
    """The labelled images of one run, to train on and to validate on, and its endless sequence of samples."""

    def __init__(self, recipe: Recipe, data: Sequence[Path]) -> None:
        """List the images.

        Args:
            recipe: Says how samples are mixed and changed.
            data: Folders (see `find_split`); `SYNTHETIC` among them adds procedural scenes, and alone stands for a
                data set of nothing else.

        Raises:
            ConfigError: A folder is missing or empty, or an image has no label; or procedural scenes, which have
                CamVid's classes, are to be mixed with other classes.
        """
        folders = [folder for folder in data if str(folder) != SYNTHETIC]
        self.recipe = recipe
        self.synthetic_share = recipe.synthetic_share if folders else 1.0
        split = find_split(folders) if folders else Split(training=[], validation=[])
        self.training, self.validation = split.training, split.validation
        if len(folders) < len(data) and folders and not recipe.synthetic_share:
            raise ConfigError(
                f"recipe {recipe.name}: data={SYNTHETIC!r} was given next to folders, but the recipe's share of "
                "procedural scenes is 0; give synthetic_share=."
            )
        if self.synthetic_share and recipe.info.class_names != CAMVID_CLASSES:
            raise ConfigError(
                f"recipe {recipe.name}: procedural scenes have the CamVid classes, the recipe has others; "
                "leave out data='synthetic', and give synthetic_share=0."
            )

    def read(self, pair: Pair) -> Sample:
        """Read image ``(H, W, 3) uint8`` RGB and label ``(H, W) uint8`` with 255 for ignored pixels.

        Raises:
            ConfigError: A file is unreadable, or the label has a value out of range.
            ShapeError: The two differ in size.
        """
        image, info = read_image(pair[0]), self.recipe.info
        label = read_label(
            pair[1],
            num_classes=len(info.class_names),
            ignore_index=info.ignore_index,
            image_hw=(image.shape[0], image.shape[1]),
            reduce_zero_label=self.recipe.reduce_zero_label,
        )
        return image, label

    def validation_count(self) -> int:
        """Return how many samples `validation_sample` knows."""
        return len(self.validation) or len(_VALIDATION_SCENES)

    def validation_sample(self, index: int) -> Sample:
        """Return a labelled image to validate on; procedural scenes where the run has no images."""
        if self.validation:
            return self.read(self.validation[index])
        scene = street_scene(_VALIDATION_SCENES[index], self.recipe.info.size_hw)
        return scene.image, scene.label

    def batch(self, first: int, count: int) -> Sample:
        """Return samples ``first`` to ``first + count - 1`` of the sequence.

        Returns:
            Images ``(count, 3, *crop_hw) float32``, normalised, and labels ``(count, *crop_hw) uint8``.

        Raises:
            ConfigError: A file is unreadable, or a label has a value out of range.
            ShapeError: An image and its label differ in size.
        """
        images, labels = zip(*(self._sample(first + i) for i in range(count)), strict=True)
        return np.stack(images), np.stack(labels)

    def _sample(self, index: int) -> Sample:
        recipe = self.recipe
        rng = np.random.default_rng((recipe.seed, index))
        if rng.random() < self.synthetic_share:
            scene = _scene(FIRST_SCENE + int(rng.integers(_SCENES)), recipe.info.size_hw)
            image, label = scene.image, scene.label
        else:
            image, label = self.read(self.training[int(rng.integers(len(self.training)))])
        return random_sample(image, label, recipe.augmentation, rng, info=recipe.info)

    def class_weights(self) -> np.ndarray:
        """Weigh classes by the inverse root of their pixels' share.

        At most 500 labels, evenly spread, are counted.

        Returns:
            ``(K,) float32`` in 0.4-3; the class of median share has weight 1, as has one without pixels.

        Raises:
            ConfigError: A file is unreadable, or a label has a value out of range.
            ShapeError: An image and its label differ in size.
        """
        counts = np.zeros(IGNORE + 1)
        for pair in self.training[:: -(-len(self.training) // _COUNTED_LABELS) or 1]:
            counts += np.bincount(self.read(pair)[1].ravel(), minlength=IGNORE + 1)
        counts = counts[: len(self.recipe.info.class_names)]
        present = counts > 0
        weights = np.ones(len(counts), np.float32)
        if present.any():
            weights[present] = np.sqrt(np.median(counts[present]) / counts[present]).clip(0.4, 3.0)
        return weights


@lru_cache(maxsize=_SCENES)
def _scene(seed: int, size_hw: tuple[int, int]) -> Scene:
    return street_scene(seed, size_hw)
