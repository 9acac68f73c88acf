"""Small films for the filter: scenes of their own look in which something moves, cuts, still and black stretches."""

import pathlib
from collections.abc import Sequence

import av
import numpy as np

SIDE = 96


def scene(seed: int, frames: int) -> np.ndarray:
    """uint8[frames, SIDE, SIDE, 3]: two textured blocks that move over a background of soft colours."""
    rng = np.random.default_rng(seed)
    across = np.linspace(0, 1, SIDE)
    corners = rng.uniform(30, 220, (2, 2, 3))
    rows = corners[0] * (1 - across[:, None, None]) + corners[1] * across[:, None, None]
    background = rows[:, :1] * (1 - across[None, :, None]) + rows[:, 1:] * across[None, :, None]
    film = np.repeat(background[None], frames, 0)
    for _ in range(2):
        size, colour = rng.integers(18, 34), rng.uniform(0, 255, 3)
        texture = np.clip(colour + rng.normal(0, 40, (size // 3 + 1, size // 3 + 1, 3)), 0, 255)
        texture = texture.repeat(3, 0).repeat(3, 1)[:size, :size]
        at, speed = rng.uniform(0, SIDE - size, 2), rng.uniform(1.2, 2.5, 2) * rng.choice([-1, 1], 2)
        for frame in film:
            x, y = at.astype(int)
            frame[y : y + size, x : x + size] = texture
            speed = np.where((at + speed < 0) | (at + speed > SIDE - size), -speed, speed)
            at = at + speed
    return film.astype(np.uint8)


def held(film: np.ndarray, at: int, frames: int) -> np.ndarray:
    """The film with its frame `at` shown `frames` times."""
    return np.concatenate([film[:at], np.repeat(film[at : at + 1], frames, 0), film[at + 1 :]])


def black(frames: int) -> np.ndarray:
    return np.full((frames, SIDE, SIDE, 3), 6, np.uint8)


def write(path: pathlib.Path, film: np.ndarray | Sequence, rate: int = 10, crf: int = 20) -> pathlib.Path:
    """H.264, as downloads are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width = film[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in film:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    return path
