"""Masks of a video compared with the labels of its frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nrd_trt.data.folders import read_label
from nrd_trt.errors import ConfigError
from nrd_trt.specs import ModelInfo
from nrd_trt.validation.metrics import confusion_matrix, mean_iou, named_iou, pixel_agreement
from nrd_trt.video.frames import Ending, SegmentedFrame, StreamInfo

_FURTHEST = 3
"""Largest number of frames by which labels are tried before and after their own."""
_THINNING = 4
"""Every fourth pixel of every fourth row is compared with the labels of neighbouring frames."""
_FEWEST, _MOST_FRAMES = 10, 0.75
_GAIN = 0.02
"""mIoU by which neighbours must agree better, in three of four frames and over at least ten. On 40 frames of CamVid's
validation drive (15 frames/s, ResNet-18) one frame off costs 0.034; of a sound pairing no neighbour gains anything."""


@dataclass(frozen=True, kw_only=True)
class FrameShift:
    """Labels that fit the masks of neighbouring frames clearly better than those of their own.

    Attributes:
        shift: The mask of frame i fits the label of frame i + `shift`.
        frames: Frames that were compared.
        miou_as_paired: Mean IoU with their own labels, on every fourth pixel of every fourth row, in 0-1.
        miou_shifted: The same with the labels of frame i + `shift`.
    """

    shift: int
    frames: int
    miou_as_paired: float
    miou_shifted: float

    def __str__(self) -> str:
        frames = "frame" if abs(self.shift) == 1 else "frames"
        return (
            f"labels look shifted by {self.shift:+d} {frames}: mIoU {self.miou_as_paired:.2f} as paired, "
            f"{self.miou_shifted:.2f} shifted, on {self.frames} frames"
        )


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """How well the masks of a run agree with labels.

    Attributes:
        frames: Frames that had a label.
        miou: Mean IoU over the classes present, in 0-1, or None where no pixel was counted.
        miou_unsmoothed: The same of the engine's masks, without smoothing.
        per_class_iou: IoU in 0-1 by class name; None for classes in neither side.
        shift: By how many frames the labels look shifted; None where their own fit as well as any.
    """

    frames: int
    miou: float | None
    miou_unsmoothed: float | None
    per_class_iou: dict[str, float | None]
    shift: FrameShift | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Kept:
    """A frame that later ones are compared with: thinned mask and label, and how they agree."""

    index: int
    mask: np.ndarray
    label: np.ndarray
    paired: np.ndarray


class ShiftMeter:
    """Compares masks with the labels of up to three frames before and after; no more frames than that are held.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._recent: deque[_Kept] = deque(maxlen=_FURTHEST)
        shifts = [shift for shift in range(-_FURTHEST, _FURTHEST + 1) if shift]
        self._paired, self._shifted = (
            {shift: np.zeros((classes, classes), np.int64) for shift in shifts} for _ in range(2)
        )
        self._frames, self._better = (dict.fromkeys(shifts, 0) for _ in range(2))

    def add(self, index: int, label: np.ndarray, mask: np.ndarray) -> None:
        """Compare a frame with those before it.

        Args:
            index: Position in the source.
            label: ``(H, W)``; 255 is not counted.
            mask: ``(H, W)`` class indices.
        """
        label, mask = (array[::_THINNING, ::_THINNING].copy() for array in (label, mask))
        frame = _Kept(index=index, mask=mask, label=label, paired=confusion_matrix(label, mask, self._classes))
        for other in self._recent:
            distance = index - other.index
            if 0 < distance <= _FURTHEST and other.mask.shape == mask.shape:
                self._count(distance, other, label)
                self._count(-distance, frame, other.label)
        self._recent.append(frame)

    def _count(self, shift: int, frame: _Kept, label: np.ndarray) -> None:
        shifted = confusion_matrix(label, frame.mask, self._classes)
        self._paired[shift] += frame.paired
        self._shifted[shift] += shifted
        self._frames[shift] += 1
        self._better[shift] += (pixel_agreement(shifted) or 0.0) > (pixel_agreement(frame.paired) or 0.0)

    def result(self) -> FrameShift | None:
        """Return the shift that fits best, where it fits clearly better than no shift in most of the frames."""
        return max(self._clear(), key=lambda found: found.miou_shifted, default=None)

    def _clear(self) -> Iterator[FrameShift]:
        for shift, count in self._frames.items():
            paired, shifted = mean_iou(self._paired[shift]), mean_iou(self._shifted[shift])
            if count < _FEWEST or self._better[shift] < _MOST_FRAMES * count or paired is None or shifted is None:
                continue
            if shifted - paired >= _GAIN:
                yield FrameShift(shift=shift, frames=count, miou_as_paired=paired, miou_shifted=shifted)


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
        self._shift = ShiftMeter(classes)
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
        self._shift.add(index, label, frame.unsmoothed)
        self._counted += 1

    def close(self, ending: Ending) -> str | None:
        """Say so where nothing was counted."""
        if self._by_order and (self._frames != len(self._labels)):
            # Some files do not tell, or tell wrongly, how many frames they have.
            self._counted = 0
            self._smoothed[:] = self._unsmoothed[:] = 0
            self._shift = ShiftMeter(len(self._smoothed))
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
            shift=self._shift.result(),
        )
