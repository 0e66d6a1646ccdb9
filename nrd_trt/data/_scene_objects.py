"""Drawers of everything that stands in a procedural street scene, one small function per kind of object.

Owns how buildings, trees, fences, poles, signs, cars and people look. Where they stand and when is decided
in `synthetic`; how a surface lands on the picture in `_scene_canvas`. Must not import anything of the
project but `_scene_canvas`.

Every drawer takes the canvas and one `Item` and draws all looks from `item.rng`, always in the same order, so
an object keeps its looks from frame to frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nrd_trt.data._scene_canvas import Canvas, Label, Panel, Rgb, cell_noise, mix, noise

WALLS = ((0.52, 0.34, 0.27), (0.62, 0.52, 0.40), (0.74, 0.70, 0.62), (0.50, 0.49, 0.47), (0.40, 0.30, 0.26))
ROOFS = ((0.30, 0.28, 0.29), (0.42, 0.27, 0.22), (0.36, 0.34, 0.32))
SHOPS = ((0.15, 0.22, 0.42), (0.50, 0.12, 0.12), (0.10, 0.32, 0.22), (0.80, 0.74, 0.62), (0.13, 0.12, 0.13))
LEAVES = ((0.22, 0.34, 0.14), (0.30, 0.36, 0.16), (0.17, 0.28, 0.15), (0.42, 0.36, 0.20))
PAINTS = ((0.72, 0.73, 0.75), (0.12, 0.13, 0.15), (0.55, 0.12, 0.12), (0.16, 0.24, 0.42), (0.38, 0.40, 0.42),
          (0.90, 0.90, 0.88), (0.20, 0.30, 0.24))  # fmt: skip
CLOTHES = ((0.12, 0.12, 0.15), (0.20, 0.22, 0.32), (0.45, 0.14, 0.14), (0.55, 0.52, 0.46), (0.25, 0.30, 0.22),
           (0.70, 0.66, 0.30), (0.16, 0.16, 0.16))  # fmt: skip
SKINS = ((0.78, 0.60, 0.50), (0.55, 0.40, 0.31), (0.36, 0.25, 0.19))
FENCES = ((0.36, 0.27, 0.19), (0.24, 0.25, 0.27), (0.20, 0.27, 0.21), (0.55, 0.53, 0.50))
POSTS = ((0.42, 0.44, 0.45), (0.25, 0.27, 0.27), (0.55, 0.55, 0.52))
GLASS: Rgb = (0.20, 0.23, 0.27)
DARK: Rgb = (0.07, 0.07, 0.08)
WHITE: Rgb = (0.88, 0.88, 0.86)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One object of the street: where its near end is, which side of the road, its looks and the time."""

    x: float
    z: float
    side: int
    rng: np.random.Generator
    time_s: float


Drawer = Callable[[Canvas, Item], None]


def pick(rng: np.random.Generator, colours: Sequence[Rgb]) -> Rgb:
    """One of `colours`, a little lighter, darker or tinted."""
    base = colours[int(rng.integers(len(colours)))]
    tint = rng.uniform(0.85, 1.15)
    r, g, b = (channel * tint + rng.uniform(-0.03, 0.03) for channel in base)
    return r, g, b


def swing(phase: float) -> float:
    """Walk of a leg, -1 to 1, as a triangle wave of period 1 (exact arithmetic, unlike a sine)."""
    return 4 * abs(phase % 1.0 - 0.5) - 1


# --- Along the street: buildings, gardens, fences -----------------------------------------------------------


def draw_plot(canvas: Canvas, item: Item, *, length: float, urban: float) -> None:
    """One plot of land beside the street: a house with probability `urban`, else a garden."""
    draw = _draw_house if item.rng.random() < urban else _draw_garden
    draw(canvas, item, length)


def _draw_house(canvas: Canvas, item: Item, length: float) -> None:
    """House front along the street with roof, chimney and the gable that faces the camera."""
    rng, side = item.rng, item.side
    wall, roof, shop = pick(rng, WALLS), pick(rng, ROOFS), pick(rng, SHOPS)
    height, pitch, seed = rng.uniform(6.0, 15.5), rng.uniform(1.8, 3.2), rng.uniform(0, 200)
    roof_m, has_shop = float(rng.choice([0.0, 1.6, 2.6])), rng.random() < 0.5
    near, far = (item.x, item.z), (item.x, item.z + length)
    back = (item.x + side * 1.5, item.z), (item.x + side * 1.5, item.z + length)
    top = Panel(canvas, *back, height, height + roof_m)
    chimney = canvas.billboard(item.x + side * 1.5, item.z + 3.5, 1.0, height + roof_m + 0.9, base=height)
    chimney.paint(chimney.inside, mix(wall, roof, 0.5), Label.BUILDING, 0.8)
    top.paint(top.inside, roof, Label.BUILDING, 0.9 + 0.15 * noise(top.s * 2, top.y * 6))
    gable = Panel(canvas, near, (item.x + side * 9.0, item.z), 0.0, height)
    gable.paint(gable.inside, wall, Label.BUILDING, 0.75 + 0.08 * noise(gable.s * 1.5, gable.y * 1.5))
    front = Panel(canvas, near, far, 0.0, height)
    _paint_front(front, wall, canvas.light.facing(-side), pitch, seed)
    if has_shop:
        _paint_shop(front, shop, seed)


def _paint_front(front: Panel, wall: Rgb, lit: float, pitch: float, seed: float) -> None:
    """Bricks, eaves and rows of framed windows on a house front."""
    bricks = noise(front.s * 5, front.y * 14) + noise(front.s * 0.6 + seed, front.y * 0.4)
    front.paint(front.inside, wall, Label.BUILDING, lit * (1 + 0.06 * bricks))
    column_no, floor_no = np.floor(front.s / pitch), np.floor(front.y / 2.9)
    across, up = front.s / pitch - column_no, front.y / 2.9 - floor_no
    frame = (abs(across - 0.5) < 0.25) & (abs(up - 0.52) < 0.29)
    pane = (abs(across - 0.5) < 0.20) & (abs(up - 0.52) < 0.25) & (abs(across - 0.5) > 0.02)
    front.paint(frame, mix(wall, WHITE, 0.5), Label.BUILDING, lit)
    tone = 1.0 + 0.6 * cell_noise(column_no + int(seed), floor_no) + 0.5 * up
    front.paint(pane, mix(GLASS, wall, 0.15), Label.BUILDING, tone)


def _paint_shop(front: Panel, shop: Rgb, seed: float) -> None:
    """Shop front on the ground floor: sign board, wide panes and a stall riser."""
    front.paint(front.y < 3.1, shop, Label.BUILDING, 0.9)
    bay = front.s / 3.0 - np.floor(front.s / 3.0)
    tone = 1.0 + 0.9 * noise(front.s * 1.5 + seed, front.y * 1.5)
    front.paint((abs(bay - 0.5) < 0.44) & (abs(front.y - 1.4) < 0.9), GLASS, Label.BUILDING, tone)
    letters = cell_noise(np.floor(front.s * 4 + seed), np.floor(front.y * 4)) > 0.1
    front.paint(letters & (abs(front.y - 2.72) < 0.2), mix(shop, WHITE, 0.7), Label.BUILDING)


def _draw_garden(canvas: Canvas, item: Item, length: float) -> None:
    """Hedge and, behind it, a tree."""
    rng = item.rng
    colour, seed, top = pick(rng, LEAVES), rng.uniform(0, 200), rng.uniform(1.4, 3.0)
    spot = item.z + length * rng.uniform(0.3, 0.7)
    draw_tree(canvas, Item(x=item.x + item.side * 2.0, z=spot, side=item.side, rng=rng, time_s=item.time_s))
    hedge = Panel(canvas, (item.x, item.z), (item.x, item.z + length), 0.0, top + 0.5)
    leaves = noise(hedge.s * 5 + seed, hedge.y * 5)
    outline = hedge.y < top + 0.4 * noise(hedge.s * 1.3 + seed, hedge.y)
    hedge.paint(outline, colour, Label.TREE, 0.7 + 0.3 * leaves + 0.1 * hedge.y)


def draw_tree(canvas: Canvas, item: Item) -> None:
    """Trunk with two boughs and a ragged, textured crown that is brighter on top and towards the sun."""
    rng = item.rng
    colour, seed = pick(rng, LEAVES), rng.uniform(0, 200)
    radius, trunk_m, gaps = rng.uniform(1.5, 2.7), rng.uniform(1.9, 3.0), rng.uniform(0.35, 0.75)
    middle, half = trunk_m + radius * 1.1, radius * 1.3
    tree = canvas.billboard(item.x, item.z, radius * 2.6, middle + half * 1.2)
    bark: Rgb = (0.26, 0.22, 0.18)
    for start, end, thick in (((0, 0), (0, middle), 0.17), ((0, trunk_m), (radius * 0.6, middle + 0.6), 0.08),
                              ((0, trunk_m), (-radius * 0.6, middle + 0.3), 0.08)):  # fmt: skip
        tree.paint(tree.bar(start, end, thick), bark, Label.TREE, 1 + 0.3 * noise(tree.s * 9, tree.y * 2))
    across, up = tree.s / radius, (tree.y - middle) / half
    clumps, leaves = noise(tree.s * 1.4 + seed, tree.y * 1.4), noise(tree.s * 5 + seed, tree.y * 5)
    crown = across * across + up * up + 0.45 * clumps + gaps * leaves < 0.85
    sunny = 0.2 * canvas.light.sun * canvas.light.sun_x * across
    tree.paint(crown, colour, Label.TREE, 0.8 + 0.3 * leaves + 0.2 * clumps + 0.2 * up + sunny)


def draw_fence(canvas: Canvas, item: Item) -> None:
    """Fence along the pavement: planks, or a railing through which the background shows darker."""
    rng = item.rng
    colour, height, railing = pick(rng, FENCES), rng.uniform(1.0, 1.7), rng.random() < 0.5
    fence = Panel(canvas, (item.x, item.z), (item.x, item.z + 11.0 * rng.uniform(0.7, 1.0)), 0.0, height)
    pitch = 0.16 if railing else 0.22
    slot = fence.s / pitch - np.floor(fence.s / pitch)
    if railing:
        fence.darken(fence.inside, 0.55, Label.FENCE)
        rails = (slot < 0.35) | (abs(fence.y - height * 0.92) < 0.05) | (abs(fence.y - 0.2) < 0.05)
        fence.paint(rails, colour, Label.FENCE, 0.8)
    else:
        plank = cell_noise(np.floor(fence.s / pitch), fence.s * 0)
        grain = 0.9 + 0.15 * plank + 0.1 * noise(fence.s, fence.y * 9)
        fence.paint(fence.inside, colour, Label.FENCE, grain * (1 - np.float32(0.4) * (slot < 0.15)))


# --- Street furniture ---------------------------------------------------------------------------------------


def _post(canvas: Canvas, item: Item, height: float, colour: Rgb, half: float = 0.06) -> None:
    """Upright post, never thinner than a pixel or so: annotators draw far poles that way too."""
    half = max(half, 0.0022 * item.z)
    post = canvas.billboard(item.x, item.z, 2 * half, height)
    post.paint(post.inside, colour, Label.POLE, 1 + 0.3 * canvas.light.sun_x * post.s / half)


def draw_lamp(canvas: Canvas, item: Item) -> None:
    """Street lamp: tall post with an arm and a lamp over the road."""
    colour, height = pick(item.rng, POSTS), item.rng.uniform(6.0, 8.5)
    _post(canvas, item, height, colour, 0.09)
    arm = canvas.billboard(item.x, item.z, 3.2, height + 0.6, base=height - 0.4)
    half, reach = max(0.05, 0.0018 * item.z), -item.side * 1.2
    arm.paint(arm.bar((0, height), (reach, height + 0.3), half), colour, Label.POLE)
    arm.paint(arm.disk(reach, height + 0.28, 0.3, 0.1 + half), mix(colour, WHITE, 0.3), Label.POLE)


def draw_bollard(canvas: Canvas, item: Item) -> None:
    """Short post at the kerb with a light band."""
    colour = pick(item.rng, (DARK, (0.30, 0.30, 0.32)))
    _post(canvas, item, 0.95, colour, 0.08)
    band = canvas.billboard(item.x, item.z, 0.16, 0.85, base=0.72)
    band.paint(band.inside, WHITE, Label.POLE)


def draw_sign(canvas: Canvas, item: Item) -> None:
    """Traffic sign, direction board or traffic light on a post."""
    rng = item.rng
    height, kind = rng.uniform(2.3, 3.4), int(rng.integers(5))
    _post(canvas, item, height, (0.45, 0.46, 0.47))
    sign = canvas.billboard(item.x, item.z, 2.6, height + 0.9, base=height - 1.5)
    if kind == 0:
        _paint_round(sign, height, rim=(0.75, 0.10, 0.10), face=WHITE)
    elif kind == 1:
        _paint_round(sign, height, rim=(0.85, 0.85, 0.85), face=(0.10, 0.25, 0.65))
    elif kind == 2:
        _paint_triangle(sign, height)
    elif kind == 3:
        _paint_board(sign, height, pick(rng, ((0.08, 0.35, 0.25), (0.12, 0.25, 0.55), (0.85, 0.72, 0.2))))
    else:
        _paint_signal(sign, height, int(rng.integers(3)))


def _paint_round(sign: Panel, y: float, *, rim: Rgb, face: Rgb) -> None:
    sign.paint(sign.disk(0, y, 0.42, 0.42), rim, Label.SIGN)
    sign.paint(sign.disk(0, y, 0.31, 0.31), face, Label.SIGN)
    sign.paint(sign.box(-0.16, 0.16, y - 0.12, y + 0.12), mix(face, DARK, 0.6), Label.SIGN)


def _paint_triangle(sign: Panel, y: float) -> None:
    for size, colour in ((0.5, (0.75, 0.10, 0.10)), (0.3, WHITE)):
        slope = (y + size - sign.y) * 0.6
        sign.paint((abs(sign.s) < slope) & (sign.y > y - size * 0.8), colour, Label.SIGN)


def _paint_board(sign: Panel, y: float, colour: Rgb) -> None:
    sign.paint(sign.box(-1.0, 1.0, y - 0.5, y + 0.7), WHITE, Label.SIGN)
    sign.paint(sign.box(-0.94, 0.94, y - 0.44, y + 0.64), colour, Label.SIGN)
    lines = abs((sign.y - y) * 3 - np.floor((sign.y - y) * 3) - 0.5) < 0.2
    sign.paint(lines & sign.box(-0.7, 0.6, y - 0.3, y + 0.5), mix(colour, WHITE, 0.8), Label.SIGN)


def _paint_signal(sign: Panel, y: float, lit: int) -> None:
    lamps: tuple[Rgb, ...] = ((0.1, 0.9, 0.5), (1.0, 0.7, 0.1), (1.0, 0.15, 0.1))
    sign.paint(sign.box(-0.28, 0.28, y - 0.75, y + 0.65), DARK, Label.SIGN)
    for place, lamp in enumerate(lamps):
        glow = lamp if place == lit else mix(DARK, lamp, 0.15)
        sign.paint(sign.disk(0, y - 0.47 + 0.42 * place, 0.16, 0.16), glow, Label.SIGN)


# --- Cars ---------------------------------------------------------------------------------------------------


def draw_car(canvas: Canvas, item: Item, *, oncoming: bool) -> None:
    """Car or, now and then, a van: the side that faces the camera, then the end that does."""
    rng = item.rng
    colour, van = pick(rng, PAINTS), rng.random() < 0.15
    length, height = (5.6, 2.3) if van else (rng.uniform(3.8, 4.6), rng.uniform(1.4, 1.6))
    inner = item.x - 0.88 * (1 if item.x > canvas.camera.x else -1)
    shadow = canvas.billboard(item.x, item.z, 2.2, 0.4, base=-0.12)
    shadow.darken(shadow.disk(0, 0.1, 1.08, 0.2), 0.45)
    side = Panel(canvas, (inner, item.z), (inner, item.z + length), -0.06, height)
    side.darken(side.y < 0.3, 0.45)
    lit = canvas.light.facing(-1 if item.x > canvas.camera.x else 1)
    _paint_car_side(side, colour, lit, length, height, hood=0.0 if van else 0.9)
    if not van:
        cabin = canvas.billboard(item.x, item.z + 0.75, 1.76, height, base=0.3)
        _paint_cabin(cabin, colour, height)
    end = canvas.billboard(item.x, item.z, 1.8, height if van else 0.92, base=0.05)
    _paint_car_end(end, colour, oncoming)
    if van:
        end.paint(end.box(-0.75, 0.75, 1.25, 1.95), GLASS, Label.CAR, 0.6 + 0.5 * (end.y - 1.2))


def _paint_car_side(side: Panel, colour: Rgb, lit: float, length: float, height: float, hood: float) -> None:
    """Profile with body, cabin, side windows and two wheels."""
    rise = np.maximum(side.y - 0.85, 0)
    cabin = (side.s > hood * (0.6 + rise)) & (side.s < length - hood * (0.3 + rise)) & (side.y > 0.8)
    body = side.box(0, length, 0.22, 0.92)
    side.paint(body | cabin, colour, Label.CAR, lit * (0.7 + 0.25 * side.y))
    pillars = abs(side.s - length * 0.52) > 0.06
    glass = cabin & (abs(side.y - (height - 0.34)) < 0.22) & pillars & (side.s > hood + 0.4)
    side.paint(glass & (side.s < length - 0.5 - hood * 0.5), GLASS, Label.CAR, 0.8)
    for wheel in (0.75, length - 0.8):
        side.paint(side.disk(wheel, 0.33, 0.33, 0.33), DARK, Label.CAR)
        side.paint(side.disk(wheel, 0.33, 0.18, 0.18), (0.45, 0.46, 0.48), Label.CAR)


def _paint_cabin(cabin: Panel, colour: Rgb, height: float) -> None:
    """Bonnet or boot lid, then the windscreen and the roof edge above it."""
    narrowing = np.maximum(cabin.y - 0.85, 0) * 0.3
    cabin.paint(abs(cabin.s) < 0.86 - narrowing, mix(colour, WHITE, 0.12), Label.CAR)
    glass = (abs(cabin.s) < 0.78 - narrowing) & (cabin.y > 0.9) & (cabin.y < height - 0.1)
    cabin.paint(glass, GLASS, Label.CAR, 0.7 + 0.6 * (cabin.y - 0.9))


def _paint_car_end(end: Panel, colour: Rgb, oncoming: bool) -> None:
    """Front or rear: tyres, body, bumper, lamps and number plate."""
    across = abs(end.s)
    end.paint((abs(across - 0.7) < 0.13) & (end.y < 0.5), DARK, Label.CAR)
    end.paint(end.box(-0.6, 0.6, 0.14, 0.4), DARK, Label.CAR)
    end.paint((across < 0.88) & (end.y > 0.32), colour, Label.CAR, 0.75 + 0.25 * end.y)
    end.paint(abs(end.y - 0.42) < 0.06, mix(colour, DARK, 0.6), Label.CAR)
    lamp: Rgb = (0.95, 0.94, 0.85) if oncoming else (0.70, 0.08, 0.06)
    end.paint((abs(across - 0.68) < 0.15) & (abs(end.y - 0.70) < 0.09), lamp, Label.CAR)
    plate: Rgb = WHITE if oncoming else (0.85, 0.72, 0.15)
    end.paint(end.box(-0.26, 0.26, 0.48, 0.58), plate, Label.CAR)
    if oncoming:
        end.paint(end.box(-0.42, 0.42, 0.64, 0.76), DARK, Label.CAR)


# --- People -------------------------------------------------------------------------------------------------


def draw_pedestrian(canvas: Canvas, item: Item) -> None:
    """Walking person; small ones are children."""
    rng = item.rng
    tall = rng.uniform(1.2, 1.9)
    coat, trousers, skin = pick(rng, CLOTHES), pick(rng, CLOTHES), pick(rng, SKINS)
    stride = 0.22 * swing(item.time_s * 0.9 + rng.random())
    body = canvas.billboard(item.x, item.z, 1.0, tall)
    for foot in (-stride, stride):
        body.paint(body.bar((0, tall * 0.5), (foot, 0.05), 0.08), trousers, Label.PEDESTRIAN, 0.9)
    _paint_upper_body(body, tall, coat, skin, stride, Label.PEDESTRIAN)


def _paint_upper_body(body: Panel, tall: float, coat: Rgb, skin: Rgb, stride: float, label: Label) -> None:
    """Torso, arms, head and hair of a person `tall` metres high."""
    shade = 0.9 + 0.2 * noise(body.s * 6, body.y * 6)
    for arm in (-1, 1):
        hand = (arm * 0.24 + stride * arm * 0.6, tall * 0.5)
        body.paint(body.bar((arm * 0.17, tall * 0.8), hand, 0.055), coat, label, 0.85)
    body.paint(body.bar((0, tall * 0.54), (0, tall * 0.78), 0.19), coat, label, shade)
    body.paint(body.disk(0, tall * 0.93, 0.1, tall * 0.07), skin, label)
    body.paint(body.disk(0, tall * 0.96, 0.105, tall * 0.045), DARK, label)


def draw_bicyclist(canvas: Canvas, item: Item) -> None:
    """Bicycle seen along its length with a pedalling rider on top."""
    rng = item.rng
    coat, trousers, skin, frame = pick(rng, CLOTHES), pick(rng, CLOTHES), pick(rng, SKINS), pick(rng, PAINTS)
    pedal = 0.12 * swing(item.time_s * 1.2 + rng.random())
    rider = canvas.billboard(item.x, item.z + 0.8, 1.0, 1.8)
    for side in (-1, 1):
        knee = (side * 0.16, 0.72 + side * pedal)
        rider.paint(rider.bar((side * 0.1, 0.98), knee, 0.085), trousers, Label.BICYCLIST)
        rider.paint(rider.bar(knee, (side * 0.14, 0.3 + side * pedal), 0.07), trousers, Label.BICYCLIST, 0.8)
    _paint_upper_body(rider, 1.8, coat, skin, 0.15, Label.BICYCLIST)
    wheels = Panel(canvas, (item.x, item.z), (item.x, item.z + 1.7), 0.0, 1.05)
    for hub in (0.34, 1.36):
        ring = wheels.disk(hub, 0.34, 0.34, 0.34) & ~wheels.disk(hub, 0.34, 0.26, 0.26)
        wheels.paint(ring, DARK, Label.BICYCLIST)
    for start, end in (((0.34, 0.34), (0.6, 0.9)), ((0.6, 0.8), (1.2, 0.85)), ((1.36, 0.34), (1.2, 1.0))):
        wheels.paint(wheels.bar(start, end, 0.035), frame, Label.BICYCLIST)
    tyre = canvas.billboard(item.x, item.z, 0.1, 0.68)
    tyre.paint(tyre.inside, DARK, Label.BICYCLIST)
    bars = canvas.billboard(item.x, item.z + 1.2, 0.6, 1.08, base=0.98)
    bars.paint(bars.inside, frame, Label.BICYCLIST)
