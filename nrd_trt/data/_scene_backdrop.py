"""Backdrop of a procedural street scene: sky, skyline and ground, which fill the picture before any object.

Owns the clouds, the far end of the street, and the road with its markings, pavement and verge. Must not
import anything of the project but `_scene_canvas`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nrd_trt.data._scene_canvas import Bools, Canvas, Floats, Label, Rgb, cell_noise, column, noise, span

WRAP_M = 1536.0  # the ground repeats after this way, so that float32 stays exact however far the car drives
FAR_M = 400.0
_SOME = np.float32(0.08)  # unit of wear; a NumPy scalar, so that masks times it stay float32
_MARKING: Rgb = (0.80, 0.80, 0.77)


@dataclass(frozen=True, kw_only=True)
class Backdrop:
    """Looks of sky and ground; `road_m` and `walk_m` are how far kerb and walls are from the centre line."""

    road_m: float
    walk_m: float
    zenith: Rgb
    cloud: float  # 0 clear .. 1 closed
    asphalt: Rgb
    slabs: Rgb
    verge: Rgb
    skyline: Rgb
    seed: float  # shifts every noise, so that no two streets share a cloud


def draw_sky(canvas: Canvas, look: Backdrop, time_s: float) -> None:
    """Fill the whole picture with sky: blue above, hazy below, clouds that drift and flatten far away."""
    height, width = canvas.label.shape
    rows = min(int(canvas.horizon) + 2, height)
    up = (np.float32(canvas.horizon) - span(0, rows, 0)) / np.float32(height)  # above the horizon
    across = (span(0, width, 1) - np.float32(canvas.centre)) / np.float32(height)
    along = 1.2 / (np.maximum(up, 0) + 0.25)
    x, y = across * along * 1.6 + look.seed, along * 3 + time_s * 0.02 + look.seed
    puffs = noise(x, y) + 0.5 * noise(x * 2.3, y * 2.3) + 0.25 * noise(x * 5.1, y * 5.1)
    cover = np.clip((puffs + 2.4 * look.cloud - 1.2) * 1.5, 0, 1)
    white = 0.9 + 0.1 * puffs - 0.25 * look.cloud * cover * (0.5 + puffs)
    haze = column(canvas.light.haze)
    blue = haze + (column(look.zenith) - haze) * np.clip(up * 2.5, 0, 1)
    glare = 1 + 0.25 * canvas.light.sun * np.clip(1 - abs(across - canvas.light.sun_x * 0.8), 0, 1)
    canvas.image[:, :rows] = (blue * (1 - cover) + white * cover) * glare
    canvas.label[:rows] = Label.SKY


def draw_skyline(canvas: Canvas, look: Backdrop) -> None:
    """Far end of the street: a hazy row of houses with trees between, standing on the horizon."""
    height, width = canvas.label.shape
    across = (span(0, width, 1) - np.float32(canvas.centre)) * np.float32(40 / height) + np.float32(look.seed)
    up = (np.float32(canvas.horizon) - span(0, height, 0)) / np.float32(height)
    block = np.floor(across / 1.7)
    top = 0.035 + 0.02 * cell_noise(block, block * 0)
    trees = cell_noise(block, block * 0 + 7) > 0.35
    top = np.where(trees, 0.03 + 0.012 * noise(across * 2, across * 0), top)
    _fill(canvas, (up < top) & (up > -0.02) & ~trees, look.skyline, Label.BUILDING)
    _fill(canvas, (up < top) & (up > -0.02) & trees, look.verge, Label.TREE)


def _fill(canvas: Canvas, mask: Bools, rgb: Rgb, label: Label) -> None:
    """Write a far-off colour, mostly haze, and its label through one mask."""
    np.copyto(canvas.image, column(rgb) * 0.45 + column(canvas.light.haze) * 0.55, where=mask)
    np.copyto(canvas.label, np.uint8(label), where=mask)


def draw_ground(canvas: Canvas, look: Backdrop, travelled_m: float) -> None:
    """Fill everything below the horizon with road, pavement and verge; the texture moves with the camera."""
    height, width = canvas.label.shape
    first = min(max(int(canvas.horizon + 0.5), 0), height - 1)
    down = np.maximum(span(first, height, 0) - np.float32(canvas.horizon), np.float32(0.01))
    z = np.minimum(np.float32(canvas.camera.height * canvas.focal) / down, np.float32(FAR_M))
    ray = (span(0, width, 1) - np.float32(canvas.centre)) / np.float32(canvas.focal)
    x = (ray - np.float32(canvas.camera.curve) * z) * z + np.float32(canvas.camera.x)
    way, near = z + np.float32(travelled_m % WRAP_M), 14 / (14 + z)
    off = abs(x)
    road, walk = off < look.road_m, off < look.walk_m
    rough = noise(x * 6, way * 6)
    shade = 1 + 0.09 * near * rough + 0.06 * noise(x * 0.5 + look.seed, way / 6)
    rgb = np.where(road, column(look.asphalt), np.where(walk, column(look.slabs), column(look.verge)))
    rgb *= np.where(road | walk, shade * _wear(off, way, near, road, look), 0.9 + 0.3 * rough)
    marked = road & (rough > -0.75) & _markings(x, way, z, look)  # paint has worn off the roughest spots
    np.copyto(rgb, column(_MARKING) * shade, where=marked)
    rgb *= _shadow(canvas, x, way, look)
    clear = canvas.light.clear(z)
    canvas.image[:, first:] = rgb * clear + column(canvas.light.haze) * (1 - clear)
    label = np.where(road, Label.ROAD, np.where(walk, Label.PAVEMENT, Label.TREE))
    canvas.label[first:] = label.astype(np.uint8)


def _wear(off: Floats, way: Floats, near: Floats, road: Bools, look: Backdrop) -> Floats:
    """Brightness by use: darker tyre tracks, a gutter and a light kerb, joints between slabs."""
    lane = off / look.road_m
    tracks = 1 - _SOME * (abs(abs(lane - 0.45) - 0.2) < 0.07)
    gutter = 1 - 2 * _SOME * (look.road_m - off < 0.25)
    kerb = 1 + 2 * _SOME * (off - look.road_m < 0.16)
    joints = (way % 0.75 < 0.045) | (off % 0.75 < 0.045)
    return np.where(road, tracks * gutter, kerb * (1 - 3 * _SOME * near * joints))


def _markings(x: Floats, way: Floats, z: Floats, look: Backdrop) -> Bools:
    """Centre dashes, edge lines on some streets and now and then a zebra crossing."""
    half = 0.06 + 0.0012 * z  # a far line keeps about a pixel
    dashes = (abs(x) < half) & (way % 6.0 < 3.2)
    edges = (abs(abs(x) - look.road_m + 0.4) < half) & (look.seed % 2.0 < 1.0)
    block = np.floor(way / 48)
    zebra = (cell_noise(block, block * 0 + int(look.seed)) > 0.3) & (way % 48.0 < 3.0) & (x % 1.1 < 0.55)
    return dashes | edges | zebra


def _shadow(canvas: Canvas, x: Floats, way: Floats, look: Backdrop) -> Floats:
    """Brightness left by the shadows of the houses on the sunny side, with a ragged roof line."""
    light = canvas.light
    towards_sun = x if light.sun_x > 0 else -x
    edge = look.road_m * (1.6 - 2.0 * abs(light.sun_x)) + 1.5 * cell_noise(np.floor(way / 12), way * 0)
    return 1 - np.float32(0.45 * light.sun) * (towards_sun > edge)
