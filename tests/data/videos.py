"""Small videos for tests, in which each frame tells its number."""

import fractions
import pathlib

import av
import numpy as np

LEVELS = 8


def frame(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Grey of a brightness that says `number` (up to 28), with a white top left corner."""
    image = np.full((height, width, 3), 16 + LEVELS * number, np.uint8)
    image[: height // 4, : width // 4] = 255
    return image


def number_of(image: np.ndarray) -> int:
    """The inverse of `frame`, from the lower right quarter."""
    height, width = image.shape[:2]
    return round((float(image[height // 2 :, width // 2 :].mean()) - 16) / LEVELS)


def write(path: pathlib.Path, frames: int, rate: float = 10, times: list[float] | None = None, turn: int = 0):
    """Writes a video whose codec fits the file's ending; `times` in seconds makes the frame rate vary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = {".mp4": "mpeg4", ".mkv": "mpeg4", ".avi": "mpeg4", ".webm": "libvpx", ".gif": "gif"}[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fractions.Fraction(rate))
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if codec != "gif":
            stream.bit_rate = 4_000_000
        if turn:
            stream.set_display_rotation(turn)
        base = fractions.Fraction(1, 1000) if times else 1 / fractions.Fraction(rate)
        stream.codec_context.time_base = base
        for k in range(frames):
            picture = av.VideoFrame.from_ndarray(frame(k), format="rgb24")
            picture.pts, picture.time_base = round(times[k] * 1000) if times else k, base
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path
