"""The built-in dataset: one drawn figure per image, on a cluttered background, with its exact mask.

Ten classes, 32 x 32 RGB, nothing to download, always the same pixels. Position, tilt,
area, colour and texture are drawn in the same way for every class. Only the outline tells the
class, and a linear model on the pixels cannot read it. A network of width 8 learns most of it in
seconds on one CPU core: 1800 images in 3 epochs give 75 to 92 % (tests/study/runs/test_train.py).
"""

import numpy as np
from PIL import Image, ImageDraw

SIZE = 32
COUNTS = {"train": 10_000, "test": 5_000}
_SCALE = 4  # masks are drawn 4 x larger and averaged down: smooth edges


def _regular(corners, radius=1.0, start=0.0):
    angles = start + np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star():
    points = np.empty((10, 2))
    points[0::2], points[1::2] = _regular(5), _regular(5, 0.42, np.pi / 5)
    return points


def _crescent():
    """A unit disc without the disc of radius 0.8 around (0.5, 0)."""
    corner_x = (1 + 0.5**2 - 0.8**2) / (2 * 0.5)
    corner_y = np.sqrt(1 - corner_x**2)
    outer = np.arctan2(corner_y, corner_x)
    inner = np.arctan2(corner_y, corner_x - 0.5)
    outer = np.linspace(outer, 2 * np.pi - outer, 40)
    inner = np.linspace(2 * np.pi - inner, inner, 40)
    left = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    right = 0.8 * np.stack([np.cos(inner), np.sin(inner)], axis=1) + [0.5, 0.0]
    return np.concatenate([left, right])


def _heart():
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1) / 16


_CROSS = np.transpose(
    [[-1, 1, 1, 3, 3, 1, 1, -1, -1, -3, -3, -1], [-3, -3, -1, -1, 1, 1, 3, 3, 1, 1, -1, -1]]
)
_ARROW = [(3, 0), (0.2, 2.6), (0.2, 0.9), (-3, 0.9), (-3, -0.9), (0.2, -0.9), (0.2, -2.6)]

_OUTLINES = {
    "arrow": np.array(_ARROW),
    "bar": np.array([(-2.2, -0.6), (2.2, -0.6), (2.2, 0.6), (-2.2, 0.6)]),
    "circle": _regular(48),
    "crescent": _crescent(),
    "cross": _CROSS,
    "heart": _heart(),
    "ring": _regular(48),
    "square": _regular(4, start=np.pi / 4),
    "star": _star(),
    "triangle": _regular(3),
}
_HOLES = {"ring": _regular(48, 0.55)}
CLASSES = tuple(_OUTLINES)


def _area(points):
    x, y = points.T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _unit(name):
    """Outline and hole, perhaps of no points, centred on the bounding box and scaled to area 1."""
    outline, hole = _OUTLINES[name], _HOLES.get(name, np.empty((0, 2)))
    centre = (outline.min(0) + outline.max(0)) / 2
    scale = 1 / np.sqrt(_area(outline) - _area(hole))
    return (outline - centre) * scale, (hole - centre) * scale


_UNIT = [_unit(name) for name in CLASSES]


def _figure_mask(rng, label):
    """Coverage of the figure in [0, 1], (32, 32)."""
    side = SIZE * np.sqrt(rng.uniform(0.1, 0.2))  # side of a square of the figure's area, in pixels
    angle = np.deg2rad(rng.uniform(-6, 6))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    squeeze = np.array([1.0, rng.uniform(0.8, 1.0)])
    outline, hole = (
        (points * squeeze / np.sqrt(squeeze[1])) @ rotation.T * side for points in _UNIT[label]
    )
    # the whole figure stays inside where it fits
    low = -outline.min(0) + 1
    high = SIZE - 1 - outline.max(0)
    place = rng.uniform(np.minimum(low, high), np.maximum(low, high))
    centre = np.where(low < high, place, SIZE / 2)
    canvas = Image.new("L", (SIZE * _SCALE, SIZE * _SCALE))
    draw = ImageDraw.Draw(canvas)
    for points, ink in ((outline, 255), (hole, 0)):
        if len(points):
            draw.polygon([tuple(p) for p in (points + centre) * _SCALE], fill=ink)
    return np.asarray(canvas.reduce(_SCALE), dtype=np.float32) / 255


def _clouds(rng, cells):
    """Smooth random colours, (32, 32, 3) in [0, 255]."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32)


def _stripes(rng):
    """A wave across the image, (32, 32, 1) in [-1, 1]."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, 9)
    y, x = np.mgrid[:SIZE, :SIZE]
    along = np.cos(angle) * x + np.sin(angle) * y
    return np.sin(along * 2 * np.pi / period + rng.uniform(0, 6.28))[..., None]


def _surface(rng, colour):
    """A textured area around one colour, (32, 32, 3): the same recipe for figure and background."""
    surface = colour + rng.uniform(0.05, 0.25) * (_clouds(rng, int(rng.integers(2, 7))) - 127.5)
    return surface + rng.uniform(0, 15) * _stripes(rng)


def _clutter(rng, surface):
    """Fragments and lines of other colours over the background."""
    canvas = Image.fromarray(np.clip(surface, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(1, 4)):
        ink = tuple(int(v) for v in rng.integers(0, 256, 3))
        x, y = rng.uniform(0, SIZE, 2)
        if rng.random() < 0.5:
            end = np.array([x, y]) + rng.uniform(-14, 14, 2)
            draw.line([x, y, *end], fill=ink, width=int(rng.integers(1, 3)))
        else:
            corners = [tuple(np.array([x, y]) + rng.uniform(-4, 4, 2)) for _ in range(3)]
            draw.polygon(corners, fill=ink)
    return np.asarray(canvas, dtype=np.float32)


def _colours(rng):
    """Colours of figure and background; the figure is brighter, in one of twenty hardly so."""
    while True:
        colour, background = rng.uniform(30, 225, (2, 3))
        if (colour - background).mean() >= 70:
            break
    if rng.random() < 0.05:
        colour = background + rng.uniform(0.1, 0.5) * (colour - background)
    return colour, background


def draw_image(split: str, index: int):
    """One image: pixels (32, 32, 3) uint8, mask (32, 32) bool, label = index modulo 10."""
    rng = np.random.default_rng([0, list(COUNTS).index(split), index])
    label = index % len(CLASSES)
    colour, background = _colours(rng)
    coverage = _figure_mask(rng, label)
    pixels = _clutter(rng, _surface(rng, background))
    pixels += coverage[..., None] * (_surface(rng, colour) - pixels)
    pixels += rng.normal(0, 8, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8), coverage >= 0.5, label


def draw_images(split: str, start: int, stop: int):
    """Images start..stop-1: pixels (N, 3, 32, 32) uint8, labels (N,) int64, masks (N, 32, 32)."""
    drawn = [draw_image(split, index) for index in range(start, stop)]
    pixels, masks, labels = (np.stack(column) for column in zip(*drawn))
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels.astype(np.int64), masks
