"""A stand-in of OpenCV's capture: on a machine without a camera, its interface only."""

from __future__ import annotations

import itertools
from collections.abc import Container
from typing import Any
from unittest.mock import MagicMock

import numpy as np


def cv2_stand_in(*, frames: int = 5, devices: Container[object] | None = None, build: str = "") -> MagicMock:
    """What the sources use of ``cv2``. Frame i has blue 10·i and red 200; a device gives `frames` of them."""
    module = MagicMock(frames=frames, fps=30.0, captures=[])
    module.getBuildInformation.return_value = build

    def capture(device: object, *_: Any) -> MagicMock:
        pictures = [(True, np.full((48, 64, 3), (10 * index, 0, 200), np.uint8)) for index in range(module.frames)]
        made = MagicMock()
        made.isOpened.return_value = devices is None or device in devices
        made.get.side_effect = lambda key: module.fps if key is module.CAP_PROP_FPS else 0.0
        made.read.side_effect = itertools.chain(pictures, itertools.repeat((False, None)))
        module.captures.append(made)
        return made

    def converted(image: np.ndarray, code: object) -> np.ndarray:
        assert code is module.COLOR_BGR2RGB
        return np.ascontiguousarray(image[..., ::-1])

    module.VideoCapture.side_effect, module.cvtColor.side_effect = capture, converted
    return module
