"""Filmed episodes side by side in one animated image, which shows wherever images do: in a README, in a message."""

import pathlib
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lapa_jax.core import escape
from lapa_jax.core.files import atomic_path
from lapa_jax.data.images import resize
from lapa_jax.data.video import Video

FPS, HOLD = 10, 2
"""Images a second, at the speed of the episodes, and seconds that the last one stays."""
SIDE, COLUMNS, GAP, LINES, LINE = 160, 4, 8, 2, 15
"""Pixels of an episode's image, episodes in a row, pixels between them; lines of a caption and their height."""
INK, GROUND, SUCCESS, FAILURE = "#1f2430", "white", "#1c9a5a", "#d1603d"


class Filmed(NamedTuple):
    """Attributes: file: an mp4 of square images. caption: below it. success: how the episode ended."""

    file: pathlib.Path
    caption: str
    success: bool


def montage(path: pathlib.Path, episodes: Sequence[Filmed]) -> pathlib.Path:
    """Writes an animated WebP; an episode that is over stays, framed in green if it succeeded, else in red."""
    films = [_frames(episode.file) for episode in episodes]
    columns = min(COLUMNS, len(films))
    rows = -(-len(films) // columns)
    ground = Image.new("RGB", (columns * (SIDE + GAP) + GAP, rows * (SIDE + LINES * LINE + GAP) + GAP), GROUND)
    draw, font = ImageDraw.Draw(ground), ImageFont.load_default(12)
    places = [(GAP + k % columns * (SIDE + GAP), GAP + k // columns * (SIDE + LINES * LINE + GAP))
              for k in range(len(films))]  # fmt: skip
    for (x, y), episode in zip(places, episodes):
        words = textwrap.wrap(escape.one_line(episode.caption), 26)[:LINES]
        draw.multiline_text((x, y + SIDE + 2), "\n".join(words), INK, font, spacing=2)
    images = []
    for step in range(max(map(len, films))):
        image = ground.copy()
        draw = ImageDraw.Draw(image)
        for (x, y), film, episode in zip(places, films, episodes):
            image.paste(Image.fromarray(film[min(step, len(film) - 1)]), (x, y))
            if step >= len(film) - 1:
                border = SUCCESS if episode.success else FAILURE
                draw.rectangle((x - 2, y - 2, x + SIDE + 1, y + SIDE + 1), outline=border, width=3)
        images.append(image)
    times = [1000 // FPS] * (len(images) - 1) + [1000 * HOLD]
    with atomic_path(path) as temporary:
        images[0].save(temporary, "WEBP", save_all=True, append_images=images[1:], duration=times, loop=0, quality=70,
                       method=4)  # fmt: skip
    return path


def _frames(file: pathlib.Path) -> list[np.ndarray]:
    """Images of a film, `FPS` a second or as many as it has, and its last one."""
    video = Video(file).open()
    every, frames, last = max(1, round((video.fps or FPS) / FPS)), [], None
    for k, last in enumerate(video):
        if k % every == 0:
            frames.append(resize(last, SIDE))
    return [*frames, resize(last, SIDE)]
