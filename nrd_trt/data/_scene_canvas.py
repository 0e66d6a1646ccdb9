"""Canvas of the procedural street scenes: camera, upright panels, shapes and noise.

Owns the projection from world metres to pixels and the only two writes to a picture: `Panel.paint` and
`Panel.darken`, which give colour and label the same mask. It knows nothing of streets; what stands in one is
in `_scene_objects`. Must not import anything of the project.

World axes, in metres, seen from the car: x to the right of the road's centre line, y up from the ground,
z forward from the camera. Arrays use only exactly rounded arithmetic (no sin, exp, pow or float sums), so
that a seed gives the same bytes on every platform.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Rgb = tuple[float, float, float]

NEAR_M = 0.6  # things closer to the camera are cut off here, before the perspective division explodes
_WIDEST_M = 5.0  # nothing reaches further than this to the side of where it stands
_STRIDE = 257  # a row of the noise table: 256 values and the first again, as the last one's right neighbour
_TABLE: NDArray[np.float32] = np.pad(
    np.random.default_rng(0).uniform(-1.0, 1.0, (256, 256)).astype(np.float32), (0, 1), mode="wrap"
).ravel()


class Label(IntEnum):
    """Class index of every CamVid class, in the order of `nrd_trt.data.classes.CAMVID_CLASSES`."""

    SKY = 0
    BUILDING = 1
    POLE = 2
    ROAD = 3
    PAVEMENT = 4
    TREE = 5
    SIGN = 6
    FENCE = 7
    CAR = 8
    PEDESTRIAN = 9
    BICYCLIST = 10


def cell_noise(i: Floats, j: Floats) -> Floats:
    """Random value in [-1, 1] for each whole-numbered cell (i, j), repeating every 256 cells."""
    return _look_up(_cell(i, j))


def noise(x: Floats, y: Floats) -> Floats:
    """Smooth noise in [-1, 1] with one bump per unit, for broadcastable coordinates `x` and `y`."""
    i, j = np.floor(x), np.floor(y)
    u, v, cell = x - i, y - j, _cell(i, j)
    low, high = _look_up(cell), _look_up(cell + _STRIDE)
    low += (_look_up(cell + 1) - low) * u
    high += (_look_up(cell + (_STRIDE + 1)) - high) * u
    low += (high - low) * v
    return low


def _cell(i: Floats, j: Floats) -> NDArray[np.intp]:
    cells: NDArray[np.intp] = (j.astype(np.intp) & 255) * _STRIDE + (i.astype(np.intp) & 255)
    return cells


def _look_up(cells: NDArray[np.intp]) -> Floats:
    values: Floats = _TABLE.take(cells, mode="clip")  # unlike the default mode, this copies nothing first
    return values


def span(start: int, stop: int, axis: int) -> Floats:
    """Centres of the pixels `start` to `stop`, as a row (1, n) for axis 1 or a column (n, 1) for axis 0."""
    centres = np.arange(start, stop, dtype=np.float32) + np.float32(0.5)
    return centres[None, :] if axis else centres[:, None]


def mix(first: Rgb, second: Rgb, share: float) -> Rgb:
    """Colour between `first` (share 0) and `second` (share 1)."""
    r, g, b = (a + (z - a) * share for a, z in zip(first, second, strict=True))
    return r, g, b


def column(rgb: Rgb) -> Floats:
    """Colour as a (3, 1, 1) array, ready to broadcast over a planar picture."""
    return np.array(rgb, np.float32).reshape(3, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Where the car camera is and how it looks; the focal length is the height of the picture."""

    x: float
    height: float
    horizon: float
    curve: float  # the street bends by curve * z**2 metres to the right


@dataclass(frozen=True, kw_only=True)
class Light:
    """Daylight of one scene: where the sun is, how strong it is, and the air between."""

    sun_x: float  # -1 from the left .. 1 from the right
    sun: float  # 0 overcast .. 1 clear
    haze: Rgb
    haze_m: float  # distance at which half of the colour is haze

    def facing(self, normal_x: float) -> float:
        """Brightness of an upright surface whose outward normal points to `normal_x` (-1 left, 1 right)."""
        return 0.8 + 0.35 * self.sun * normal_x * self.sun_x

    def clear(self, z: Floats) -> Floats:
        """Share of its own colour that a thing at distance `z` keeps; the rest is haze."""
        return np.float32(self.haze_m) / (np.float32(self.haze_m) + z)


class Canvas:
    """A picture in the making: `image` (3, H, W) float32 in about [0, 1] and `label` (H, W) uint8."""

    def __init__(self, size_hw: tuple[int, int], camera: Camera, light: Light) -> None:
        self.image: Floats = np.zeros((3, *size_hw), np.float32)
        self.label = np.zeros(size_hw, np.uint8)
        self.camera, self.light = camera, light
        height, width = size_hw
        self.focal = float(height)
        self.centre = width / 2
        self.horizon = camera.horizon * height

    def project(self, x: float, z: float) -> float:
        """Picture column (in pixels, not rounded) of the upright line at (x, z)."""
        return self.centre + self.focal * ((x - self.camera.x) / z + self.camera.curve * z)

    def row(self, y: float, z: float) -> float:
        """Picture row (in pixels, not rounded) of a point `y` metres up at distance `z`."""
        return self.horizon + self.focal * (self.camera.height - y) / z

    def in_view(self, x: float, far_end: float) -> bool:
        """Whether a thing at `x` may show; things leave sideways, so its far end leaves the picture last."""
        margin = self.centre + self.focal * _WIDEST_M / max(far_end, NEAR_M)
        return far_end > NEAR_M and abs(self.project(x, far_end) - self.centre) < margin

    def billboard(self, x: float, z: float, width: float, top: float, *, base: float = 0.0) -> Panel:
        """Panel facing the camera with its foot at (x, z); its `s` runs from -width/2 to width/2."""
        return Panel(self, (x - width / 2, z), (x + width / 2, z), base, top, origin=-width / 2)


class Panel:
    """Upright rectangle of the world as it falls on the picture: the one surface everything is drawn on.

    `s` (1, w) are the metres along it and `y` (h, w) or (h, 1) the metres up, of each pixel of its bounding
    box; a panel out of sight has empty arrays, which every drawing step passes through unharmed.
    """

    def __init__(
        self,
        canvas: Canvas,
        start: tuple[float, float],
        end: tuple[float, float],
        base: float,
        top: float,
        *,
        origin: float = 0.0,
    ) -> None:
        (x0, z0), (x1, z1) = start, end
        length = max(abs(x1 - x0), abs(z1 - z0))
        if z0 < NEAR_M < z1:  # cut the part beside and behind the camera
            cut = (NEAR_M - z0) / (z1 - z0)
            x0, z0, origin, length = x0 + (x1 - x0) * cut, NEAR_M, origin + length * cut, length * (1 - cut)
        hidden = min(z0, z1) < NEAR_M
        z0, z1 = max(z0, NEAR_M), max(z1, NEAR_M)
        u0, u1 = canvas.project(x0, z0), canvas.project(x1, z1)
        cols = _pixels(min(u0, u1), max(u0, u1), 0 if hidden else canvas.label.shape[1])
        tops, bases = (canvas.row(top, z0), canvas.row(top, z1)), (canvas.row(base, z0), canvas.row(base, z1))
        rows = _pixels(min(tops), max(bases), canvas.label.shape[0])
        self._image, self._label = canvas.image[:, rows, cols], canvas.label[rows, cols]
        along = (span(cols.start, cols.stop, 1) - np.float32(u0)) / np.float32((u1 - u0) or 1.0)
        depth = np.full((1, 1), z0, np.float32)
        if z0 != z1:  # 1/z, not z, is linear on the picture
            depth = np.float32(1) / (np.float32(1 / z0) + along * np.float32(1 / z1 - 1 / z0))
        self.s: Floats = np.float32(origin) + along * depth * np.float32(length / z1)
        up = np.float32(canvas.horizon) - span(rows.start, rows.stop, 0)
        self.y: Floats = np.float32(canvas.camera.height) + up * (depth / np.float32(canvas.focal))
        self.inside: Bools = (self.y >= base) & (self.y <= top)
        self._clear = canvas.light.clear(depth)
        self._haze = column(canvas.light.haze) * (1 - self._clear)

    def paint(self, mask: Bools, rgb: Rgb, label: Label, shade: Floats | float = 1.0) -> None:
        """Write colour (`rgb` times `shade`, dimmed by the haze) and `label` where `mask` holds."""
        mask = mask & self.inside
        np.copyto(self._image, column(rgb) * (shade * self._clear) + self._haze, where=mask)
        np.copyto(self._label, np.uint8(label), where=mask)

    def darken(self, mask: Bools, factor: float, label: Label | None = None) -> None:
        """Dim what is already there: a shadow keeps the label, a railing seen through gives its own."""
        mask = mask & self.inside
        np.multiply(self._image, np.float32(factor), out=self._image, where=mask)
        if label is not None:
            np.copyto(self._label, np.uint8(label), where=mask)

    def box(self, left: float, right: float, base: float, top: float) -> Bools:
        """Mask of an upright rectangle, in metres."""
        return (self.s >= left) & (self.s <= right) & (self.y >= base) & (self.y <= top)

    def disk(self, s: float, y: float, half_width: float, half_height: float) -> Bools:
        """Mask of an ellipse around (s, y), in metres."""
        across, up = (self.s - s) / half_width, (self.y - y) / half_height
        return across * across + up * up <= 1

    def bar(self, start: tuple[float, float], end: tuple[float, float], half: float) -> Bools:
        """Mask of a stick with round ends from `start` to `end` (s, y), `half` metres thick on each side."""
        (s0, y0), (s1, y1) = start, end
        ds, dy = s1 - s0, y1 - y0
        square = ds * ds + dy * dy
        share = np.minimum(np.maximum((self.s - s0) * (ds / square) + (self.y - y0) * (dy / square), 0), 1)
        across, up = self.s - s0 - share * ds, self.y - y0 - share * dy
        return across * across + up * up <= half * half


def _pixels(low: float, high: float, size: int) -> slice:
    """Pixels whose centres lie in [low, high), within a picture of `size` pixels."""
    first = min(max(int(low + 0.5), 0), size)
    return slice(first, max(first, min(int(max(high, 0) + 0.5), size)))
