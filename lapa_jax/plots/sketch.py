"""Small plots drawn by Pillow, for the images of a training.

matplotlib takes one to three seconds for as many labelled panels, and half a second to import: more than a training of
minutes should spend on images. What a report shows is drawn by matplotlib.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lapa_jax.core.files import atomic_path

INK, MUTED, BAR, ACCENT, LINE = "#1f2430", "#7a8194", "#3b6fb6", "#d1603d", "#c5cad6"
"""As of `plots.frames`."""
MARGIN, TITLE, LABEL = 16, 22, 14
"""Pixels: around parts and between them, height of a title and of a label."""


def blank(width: float, height: float) -> Image.Image:
    """An empty image of so many pixels."""
    return Image.new("RGB", (round(width), round(height)), "white")


def write(image: Image.Image, path) -> pathlib.Path:
    """Writes a PNG, atomically."""
    with atomic_path(path) as temporary:
        # Least compression: more takes longer than all the drawing.
        image.save(temporary, "PNG", compress_level=1)
    return pathlib.Path(path)


def font(size: float) -> ImageFont.FreeTypeFont:
    """The one that comes with Pillow, which has Latin letters and no signs of mathematics."""
    return ImageFont.load_default(size)


def hues(count: int) -> list[tuple[int, int, int]]:
    """So many colours around the circle."""
    circle = np.array([[(255 * k // count, 230, 215) for k in range(count)]], np.uint8)
    return [tuple(color) for color in np.asarray(Image.fromarray(circle, "HSV").convert("RGB"))[0].tolist()]


class Panel:
    """A rectangle of an image with a title, into which values are drawn.

    Its pixels lie within [left, left + width] x [top + TITLE, top + height - LABEL]; the label line is below.
    """

    def __init__(
        self, image: Image.Image, box: tuple[float, float, float, float], title: str,
        x: tuple[float, float], y: tuple[float, float],
    ):  # fmt: skip
        """Args:
          image: to draw into. box: left, top, width and height in pixels, title and label included.
          title: above the rectangle. x, y: the values at its ends; those that are alike are drawn in the middle.
        """
        left, top, width, height = box
        # In this mode colours with a fourth number are mixed with what is there.
        self._draw = ImageDraw.Draw(image, "RGBA")
        self._left, self._right = left, left + width
        self._top, self._bottom = top + TITLE, top + height - LABEL
        self._x, self._y = x, y
        self._draw.text((left, top), title, INK, font(13))

    def frame(self) -> None:
        """Draws the left and the lower edge, and the values at their ends."""
        self._draw.line([(self._left, self._top), (self._left, self._bottom), (self._right, self._bottom)], LINE)
        small = font(11)
        for value, across, anchor in zip(self._x, (self._left, self._right), ("la", "ra")):
            self._draw.text((across, self._bottom + 2), f"{value:.3g}", MUTED, small, anchor)
        for value, down, anchor in zip(self._y, (self._bottom, self._top), ("ld", "la")):
            self._draw.text((self._left + 3, down), f"{value:.3g}", MUTED, small, anchor)

    def dots(self, x: np.ndarray, y: np.ndarray, colors: Sequence, radii: Sequence[float], edge: str | None = None):
        """Discs of a colour and a radius in pixels each; `edge`: the colour of their outline."""
        points = zip(*self._pixels(x, y), colors, radii)
        for across, down, color, radius in points:
            disc = (across - radius, down - radius, across + radius, down + radius)
            self._draw.ellipse(disc, color, edge)

    def curve(self, x: np.ndarray, y: np.ndarray, color, width: int = 1) -> None:
        """A line through points; a single one is a disc."""
        if len(x) == 1:
            self.dots(x, y, [color], [2 + width])
        else:
            self._draw.line(list(zip(*self._pixels(x, y))), color, width)

    def bars(self, values: np.ndarray, color: str = BAR) -> None:
        """A bar for each value, side by side, from the lower edge; 0 is at the edge and `y[1]` at the top."""
        step = (self._right - self._left) / len(values)
        for i, value in enumerate(values):
            if value > 0:
                start = self._left + i * step
                top = self._pixels(np.zeros(1), np.array([value]))[1][0]
                self._draw.rectangle((start + 0.1 * step, top, start + 0.9 * step, self._bottom), color)

    def below(self, labels: Sequence[str]) -> None:
        """Labels at equal distances under the rectangle."""
        step = (self._right - self._left) / len(labels) if labels else 0
        for i, label in enumerate(labels):
            self._draw.text((self._left + (i + 0.5) * step, self._bottom + 2), label, MUTED, font(11), "ma")

    def beside(self, labels: Sequence[str]) -> None:
        """Labels at equal distances to the left of the rectangle, the first one at the top."""
        step = (self._bottom - self._top) / len(labels) if labels else 0
        for i, label in enumerate(labels):
            self._draw.text((self._left - 4, self._top + (i + 0.5) * step), label, MUTED, font(11), "rm")

    def _pixels(self, x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
        across = self._left + _share(x, *self._x) * (self._right - self._left)
        down = self._bottom - _share(y, *self._y) * (self._bottom - self._top)
        return across.tolist(), down.tolist()


def _share(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """How far values lie between `low`, 0, and `high`, 1; those outside are at the ends."""
    if not high > low:
        return np.full(len(values), 0.5)
    return np.clip((np.asarray(values, np.float64) - low) / (high - low), 0, 1)
