"""Masks of a video compared with the labels of its frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nrd_trt.data.folders import read_label
from nrd_trt.errors import ConfigError
from nrd_trt.specs import ModelInfo
from nrd_trt.validation.metrics import confusion_matrix, mean_iou, named_iou
from nrd_trt.video.frames import Ending, SegmentedFrame, StreamInfo


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """How well the masks of a run agree with labels.

    Attributes:
        frames: Frames that had a label.
        miou: Mean IoU over the classes present, in 0-1, or None where no pixel was counted.
        miou_unsmoothed: The same of the engine's masks, without smoothing.
        per_class_iou: IoU in 0-1 by class name; None for classes in neither side.
    """

    frames: int
    miou: float | None
    miou_unsmoothed: float | None
    per_class_iou: dict[str, float | None]


class LabelSink:
    """Counts pixels against labels, with and without smoothing.

    A label is the PNG with the frame's name. Where no name fits and there are as many labels as frames, they go by
    order. Frames without a label are not counted.

    Args:
        folder: Folder of index PNGs.
        info: Classes of the model.
        ignore_index: A value that is not counted besides 255.

    Raises:
        ConfigError: The folder is missing or holds no PNG.
    """

    shows_picture = False

    def __init__(self, folder: Path, info: ModelInfo, *, ignore_index: int | None) -> None:
        self._labels = sorted(folder.glob("*.png"))
        if not self._labels:
            raise ConfigError(f"labels={folder}: expected a folder of index PNGs, found none; check the path.")
        self._folder, self._info, self._ignore_index = folder, info, ignore_index
        classes = len(info.class_names)
        self._smoothed, self._unsmoothed = (np.zeros((classes, classes), np.int64) for _ in range(2))
        self._counted = self._frames = 0

    def open(self, info: StreamInfo) -> None:
        """Choose how labels are found."""
        self._by_order = info.frames in (None, len(self._labels))

    def write(self, frame: SegmentedFrame) -> None:
        """Count a frame, where it has a label."""
        self._frames += 1
        path, index = self._folder / f"{frame.frame.name}.png", frame.frame.index
        if path.is_file():
            self._by_order = False
        elif self._by_order and index < len(self._labels):
            path = self._labels[index]
        else:
            return
        classes, (height, width) = len(self._info.class_names), frame.mask.shape
        label = read_label(path, num_classes=classes, ignore_index=self._ignore_index, image_hw=(height, width))
        self._smoothed += confusion_matrix(label, frame.mask, classes)
        self._unsmoothed += confusion_matrix(label, frame.unsmoothed, classes)
        self._counted += 1

    def close(self, ending: Ending) -> str | None:
        """Say so where nothing was counted."""
        if self._by_order and (self._frames != len(self._labels)):
            # Some files do not tell, or tell wrongly, how many frames they have.
            self._counted = 0
            self._smoothed[:] = self._unsmoothed[:] = 0
        if self._counted:
            return None
        return (
            f"{self._folder}: expected labels with the names of frames, or as many as the {self._frames} frames, got "
            f"{len(self._labels)}; mIoU was not measured."
        )

    def scores(self) -> LabelScores:
        """Return the scores of the frames so far."""
        return LabelScores(
            frames=self._counted,
            miou=mean_iou(self._smoothed),
            miou_unsmoothed=mean_iou(self._unsmoothed),
            per_class_iou=named_iou(self._smoothed, self._info.class_names),
        )
