"""Procedural street scenes with exact labels: seeded, any size, single frames or a moving clip.

Owns the world (which street a seed is, where things stand and how they move), the order of painting and the
sensor that turns the painting into a photo. How things look is in `_scene_objects` and `_scene_backdrop`, how
they land on the picture in `_scene_canvas`. Needs NumPy only; must not import torch, TensorRT, OpenCV or
anything of the project but those three and `nrd_trt.errors`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nrd_trt.data import _scene_objects as objects
from nrd_trt.data._scene_backdrop import Backdrop, draw_ground, draw_sky, draw_skyline
from nrd_trt.data._scene_canvas import Camera, Canvas, Floats, Light, Rgb, column, mix
from nrd_trt.errors import ConfigError

MIN_SIDE = 32
_BLOCK_M = 12.0  # length of one house along the street
_BOTH = (-1, 1)
_SLOT_ZERO = 1 << 40  # keeps slot numbers positive, as random seeds must be
_SENSOR_STREAM = 1 << 20  # random stream of the sensor noise, apart from those of the objects


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One frame: `image` (H, W, 3) uint8 RGB and `label` (H, W) uint8, CamVid class indices 0 to 10."""

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]


def street_scene(seed: int, size_hw: tuple[int, int], *, time_s: float = 0.0) -> Scene:
    """Draw the street `seed` as the car camera sees it after `time_s` seconds.

    Args:
        seed: Which street, 0 or more. The same seed and time give the same bytes.
        size_hw: Height and width in pixels, each at least 32. The height sets the resolution, the ratio how
            much is seen to the sides.
        time_s: Seconds since the start of the drive.

    Returns:
        The frame with exact labels: all 11 CamVid classes, never void.

    Raises:
        ConfigError: The size is below 32 x 32 or the seed is negative.
    """
    _check(seed, size_hw)
    world = _world(seed)
    canvas = _paint(world, size_hw, time_s)
    return Scene(image=_expose(canvas.image, world, time_s), label=canvas.label)


def street_clip(seed: int, size_hw: tuple[int, int], *, frames: int, fps: float = 15.0) -> Iterator[Scene]:
    """Drive along the street `seed`; frame i is `street_scene(seed, size_hw, time_s=i / fps)`.

    Args:
        seed: Which street, 0 or more.
        size_hw: Height and width in pixels, each at least 32.
        frames: Number of frames, at least 1.
        fps: Frames per second, above 0.

    Returns:
        Iterator that draws one frame at a time.

    Raises:
        ConfigError: At once, if an argument is out of its range.
    """
    _check(seed, size_hw)
    if frames < 1 or not fps > 0:
        raise ConfigError(
            f"street clip: expected frames >= 1 and fps > 0, got frames={frames} and fps={fps}; raise them"
        )
    return (street_scene(seed, size_hw, time_s=index / fps) for index in range(frames))


def _check(seed: int, size_hw: tuple[int, int]) -> None:
    if min(size_hw) < MIN_SIDE:
        raise ConfigError(
            f"street scene size: expected height and width >= {MIN_SIDE}, got {size_hw[0]}x{size_hw[1]}; "
            "ask for a larger size_hw and downscale it"
        )
    if seed < 0:
        raise ConfigError(f"street scene seed: expected 0 or more, got {seed}; choose another seed")


# --- The world: what a seed stands for ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _World:
    """A street: its look, light and camera, and how busy it is (`urban`, `green`, `traffic` in 0 to 1)."""

    seed: int
    drive: int  # side of the road that traffic keeps to: -1 left, 1 right
    speed: float  # of the camera, m/s
    urban: float
    green: float
    traffic: float
    camera: Camera
    light: Light
    backdrop: Backdrop
    exposure: float
    tint: Rgb
    grain: float
    blur: float


def _world(seed: int) -> _World:
    rng = np.random.default_rng([seed])
    drive, road_m = (-1 if rng.random() < 0.7 else 1), rng.uniform(4.0, 5.6)
    haze = mix((0.80, 0.85, 0.90), (0.92, 0.88, 0.80), rng.random())
    light = Light(sun_x=rng.uniform(-1, 1), sun=rng.random(), haze=haze, haze_m=rng.uniform(120, 500))
    return _World(
        seed=seed,
        drive=drive,
        speed=rng.uniform(5.0, 10.0),
        urban=rng.uniform(0.3, 1.0),
        green=rng.uniform(0.05, 0.5),
        traffic=rng.uniform(0.3, 1.0),
        camera=Camera(
            x=drive * road_m * 0.43,
            height=rng.uniform(1.25, 1.6),
            horizon=rng.uniform(0.44, 0.57),
            curve=rng.uniform(-0.0012, 0.0012),
        ),
        light=light,
        backdrop=_backdrop(rng, road_m, light),
        exposure=rng.uniform(0.85, 1.3) if rng.random() < 0.85 else rng.uniform(0.4, 0.7),
        tint=(rng.uniform(0.94, 1.06), 1.0, rng.uniform(0.92, 1.08)),
        grain=rng.uniform(0.004, 0.02),
        blur=rng.uniform(0.0, 0.5),
    )


def _backdrop(rng: np.random.Generator, road_m: float, light: Light) -> Backdrop:
    asphalt, pale = rng.uniform(0.28, 0.5), rng.uniform(0.42, 0.62)
    return Backdrop(
        road_m=road_m,
        walk_m=road_m + rng.uniform(2.4, 4.4),
        zenith=mix((0.35, 0.52, 0.80), (0.60, 0.70, 0.82), rng.random()),
        cloud=1.0 - 0.8 * light.sun,
        asphalt=(asphalt, asphalt * rng.uniform(0.98, 1.02), asphalt * rng.uniform(0.97, 1.08)),
        slabs=(pale * rng.uniform(1.0, 1.1), pale, pale * rng.uniform(0.9, 1.02)),
        verge=objects.pick(rng, objects.LEAVES),
        skyline=objects.pick(rng, objects.WALLS),
        seed=rng.uniform(0, 200),
    )


def _paint(world: _World, size_hw: tuple[int, int], time_s: float) -> Canvas:
    """Paint the street from far to near; what is nearer covers colour and label alike."""
    canvas = Canvas(size_hw, world.camera, world.light)
    draw_sky(canvas, world.backdrop, time_s)
    draw_skyline(canvas, world.backdrop)
    draw_ground(canvas, world.backdrop, world.speed * time_s)
    found = []
    for number, stream in enumerate(_streams(world)):
        for item in _within_reach(world, number, stream, time_s):
            if canvas.in_view(item.x, item.z + stream.depth):
                found.append((item.z + stream.order, stream.draw, item))
    for _, draw, item in sorted(found, key=lambda entry: -entry[0]):  # the order of streams decides between equals
        draw(canvas, item)
    return canvas


# --- Streams: endless rows of things, of which the camera sees a stretch ------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Stream:
    """Endless row of alike things along the street, one or none per slot of `spacing` metres.

    A slot's number alone decides its looks, so things keep their identity and a drive never runs out of them.
    """

    draw: objects.Drawer
    spacing: float
    chance: float
    lateral: tuple[float, float]  # distance from the centre line, metres
    sides: tuple[int, ...] = _BOTH
    speed: float = 0.0  # along the street, m/s; negative comes towards the camera
    reach: tuple[float, float] = (0.0, 90.0)  # seen between these distances
    depth: float = 0.0  # how far it extends away from the camera
    order: float = 0.0  # painted as if so much farther, so that the middle of the road covers its sides
    jitter: float = 0.8  # share of the spacing by which things leave their slot's start


def _streams(world: _World) -> list[_Stream]:
    """Everything along the street, row by row from the walls to the middle of the road."""
    kerb, wall, drive = world.backdrop.road_m, world.backdrop.walk_m, world.drive
    plot = partial(objects.draw_plot, length=_BLOCK_M, urban=world.urban)
    ahead, towards = partial(objects.draw_car, oncoming=False), partial(objects.draw_car, oncoming=True)
    beside = partial(_Stream, spacing=_BLOCK_M, reach=(-_BLOCK_M, 170), depth=_BLOCK_M, order=_BLOCK_M, jitter=0.0)
    walker = partial(_Stream, draw=objects.draw_pedestrian, spacing=7.0, lateral=(kerb + 0.5, wall - 0.6))
    rider = partial(_Stream, draw=objects.draw_bicyclist, lateral=(kerb - 1.7, kerb - 1.0), order=-4.0)
    parked = partial(_Stream, spacing=6.5, lateral=(kerb - 0.5, kerb - 0.2), reach=(-5.6, 90), depth=5.6, jitter=0.2)
    moving = partial(_Stream, chance=world.traffic * 0.7, lateral=(kerb * 0.38, kerb * 0.44), depth=5.6, order=-8.0)
    at_kerb = partial(_Stream, lateral=(kerb + 0.3, kerb + 0.6))
    return [
        beside(draw=plot, chance=1.0, lateral=(wall, wall + 0.4)),
        beside(draw=objects.draw_fence, chance=0.35, lateral=(wall - 0.4, wall - 0.4)),
        _Stream(draw=objects.draw_tree, spacing=11.0, chance=world.green, lateral=(kerb + 0.8, wall)),
        at_kerb(draw=objects.draw_lamp, spacing=26.0, chance=0.9),
        at_kerb(draw=objects.draw_bollard, spacing=3.0, chance=0.1, reach=(0, 50)),
        at_kerb(draw=objects.draw_sign, spacing=12.0, chance=0.65),
        walker(chance=0.4, speed=1.3),
        walker(chance=0.4, speed=-1.2),
        parked(draw=ahead, chance=world.traffic * 0.3, sides=(drive,)),
        parked(draw=towards, chance=world.traffic * 0.45, sides=(-drive,)),
        rider(spacing=24.0, chance=0.5, sides=(-drive,), speed=-4.0),
        rider(spacing=16.0, chance=0.4, sides=(drive,), speed=world.speed, reach=(6, 90)),
        moving(draw=towards, spacing=26.0, sides=(-drive,), speed=-8.0, reach=(-5.6, 130)),
        moving(draw=ahead, spacing=22.0, sides=(drive,), speed=world.speed, reach=(8, 130)),
    ]


def _within_reach(world: _World, number: int, stream: _Stream, time_s: float) -> Iterator[objects.Item]:
    """Things of one stream within reach of the camera."""
    passed = (world.speed - stream.speed) * time_s  # how far the camera has come along this stream
    near, far = stream.reach
    first, last = int((near + passed) // stream.spacing) - 1, int((far + passed) // stream.spacing)
    for slot in range(first, last + 1):
        for side in stream.sides:
            rng = np.random.default_rng([world.seed, number, side + 1, slot + _SLOT_ZERO])
            chance, jitter, share = rng.random(3)
            z = (slot + jitter * stream.jitter) * stream.spacing - passed
            x = stream.lateral[0] + (stream.lateral[1] - stream.lateral[0]) * share
            if chance < stream.chance and near < z < far:
                yield objects.Item(x=side * float(x), z=float(z), side=side, rng=rng, time_s=time_s)


# --- The sensor ---------------------------------------------------------------------------------------------


def _expose(image: Floats, world: _World, time_s: float) -> NDArray[np.uint8]:
    """Photo of the painting (3, H, W): soft lens, vignette, exposure, colour cast and sensor noise."""
    _, height, width = image.shape
    image = _soften(image, world.blur)
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    image *= column(world.tint) * np.float32(255 * world.exposure)
    image *= 1 - np.float32(0.07) * (down * down + across * across)
    rng = np.random.default_rng([world.seed, _SENSOR_STREAM, round(time_s * 1000) + _SLOT_ZERO])
    # brightness only: video compression leaves little colour noise
    image += rng.standard_normal((height, width), np.float32) * np.float32(255 * world.grain)
    levels = np.clip(image, 0, 255, out=image).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def _soften(image: Floats, amount: float) -> Floats:
    """Blur each row and column over three neighbours, as a lens does; the labels stay sharp."""
    keep, lend = np.float32(1 - amount), np.float32(amount / 2)
    image = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    image = image[:, 1:-1] * keep + (image[:, :-2] + image[:, 2:]) * lend
    return image[:, :, 1:-1] * keep + (image[:, :, :-2] + image[:, :, 2:]) * lend
