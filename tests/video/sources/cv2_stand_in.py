"""A stand-in of OpenCV's capture: on a machine without a camera, its interface only."""

from __future__ import annotations

from typing import Any

import numpy as np


class StandIn:
    """What the sources use of ``cv2``. Frame i has blue 10·i and red 200; a device gives `frames` of them."""

    CAP_PROP_FPS, CAP_GSTREAMER, COLOR_BGR2RGB = 5, 1800, 4

    def __init__(
        self, *, frames: int = 5, devices: set[int | str] | None = None, fps: float = 30.0, build: str = ""
    ) -> None:
        self.opened: list[tuple[Any, ...]] = []
        self.captures: list[_Capture] = []
        self.frames, self.devices, self.fps, self.build = frames, devices, fps, build

    def VideoCapture(self, *arguments: Any) -> _Capture:
        self.opened.append(arguments)
        self.captures.append(_Capture(self, self.devices is None or arguments[0] in self.devices))
        return self.captures[-1]

    def getBuildInformation(self) -> str:
        return self.build

    def cvtColor(self, image: np.ndarray, code: int) -> np.ndarray:
        assert code == self.COLOR_BGR2RGB
        return np.ascontiguousarray(image[..., ::-1])


class _Capture:
    def __init__(self, module: StandIn, opens: bool) -> None:
        self.module, self.opens, self.released = module, opens, False
        self.given, self.asked = 0, dict[int, float]()

    def isOpened(self) -> bool:
        return self.opens

    def set(self, key: int, value: float) -> bool:
        self.asked[key] = value
        return True

    def get(self, key: int) -> float:
        return self.module.fps if key == self.module.CAP_PROP_FPS else 0.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        if self.given == self.module.frames:
            return False, None
        image = np.zeros((48, 64, 3), np.uint8)
        image[..., 0], image[..., 2] = 10 * self.given, 200
        self.given += 1
        return True, image

    def release(self) -> None:
        self.released = True
