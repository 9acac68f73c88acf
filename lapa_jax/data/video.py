"""The one opener of videos: which stream is the film, how fast its frames follow each other, how they are shown.

**Film.** Covers, thumbnails and single pictures are no film, nor are depth maps beside colour; of several films the
one that the file marks as default, else the first, is taken. The others are named. **Frame rate.** What the container
says, where the time stamps agree with it, else what the time stamps say. Where they are uneven there is no frame rate:
such a video is resampled or refused. **Shown.** The display matrix (turns and mirrors) and the shape of the pixels are
applied, as players do. **Whole.** A file that ends before its own header says is refused; a last frame that is held
long is not.
"""

import contextlib
import pathlib
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from lapa_jax.data import modalities
from lapa_jax.data.image_files import check_size

ENDINGS = (".mp4", ".webm", ".avi", ".mkv", ".gif", ".mov", ".m4v", ".mpg", ".mpeg")

REPEATED = "frames repeated, where a video of variable frame rate is slower than --fps"
"""Remark: how many frames."""

_PLAUSIBLE = 480.0
"""Frames per second: what containers say beyond it is their clock."""
_EVEN = 0.25
"""How far half a second of an even video may be from its share of the frames: a dropped frame at 10 fps is 20 %."""
_ORDINALS = ("second", "third", "fourth")


class Pace(NamedTuple):
    """How fast the frames of a film follow each other.

    Attributes:
      fps: frames per second; None where nothing says it, or where they are uneven.
      slowest, fastest: where they are uneven, the frames per second of the slowest and the fastest half second.
    """

    fps: float | None
    slowest: float | None = None
    fastest: float | None = None


class Film(NamedTuple):
    """What can be known of a file without decoding it.

    Attributes:
      index: of the stream. pace: of its frames. left_out: the other streams that show something, in words.
      end: seconds at which its last frame begins, as far as the file reaches; None where there are no time stamps.
    """

    index: int
    pace: Pace
    left_out: tuple[str, ...]
    end: float | None


class Video:
    """The frames of a film, uint8[H, W, 3] as players show them (uint16[H, W] of depth maps), one in memory at a time.

    Args:
      file: a path, or an open binary file that can seek.
      target: frames per second; None keeps every frame. At time k / target the frame on screen then is taken.
      stated: frames per second as something beside the video says them; the video's own clock is then no matter.
      remarks: where it is counted what was done to how many frames.

    Attributes:
      fps: of what is given, known once `open` was called: the target, `stated`, or the video's own; or None.
      left_out: other streams, in words. remarks: as given; complete after reading.

    Raises:
      ValueError: the file cannot be read, is cut off, has uneven frames and no target, or is slower than the target
        (frames would repeat, and look like standing still).
    """

    def __init__(
        self,
        file: pathlib.Path | BinaryIO,
        target: float | None = None,
        stated: float | None = None,
        remarks: Counter | None = None,
    ):
        self._file, self._target, self._stated = file, target, stated
        self._film: Film | None = None
        self.fps = target
        self.left_out: tuple[str, ...] = ()
        self.remarks = Counter() if remarks is None else remarks

    def open(self) -> "Video":
        """Looks into the file without decoding it."""
        if self._film is None:
            film = look(self._file)
            self.fps = self._rate(film.pace)
            self.left_out, self._film = film.left_out, film
        return self

    def _rate(self, pace: Pace) -> float | None:
        if self._stated is not None:
            return self._stated
        if self._target is None:
            if pace.fastest is not None:
                raise ValueError(f"its frame rate is variable, {pace.slowest:.3g} to {pace.fastest:.3g} frames per "
                                 "second: resample it with --fps, for example --fps 10")  # fmt: skip
            return pace.fps
        fastest = pace.fastest or pace.fps
        if fastest is not None and fastest < self._target * 0.995:
            reason = f"it has {fastest:.6g} frames per second, less than --fps {self._target:g}"
            raise ValueError(f"{reason}: frames would repeat")
        return self._target

    def __iter__(self) -> Iterator[np.ndarray]:
        self.open()
        with opened(self._file) as container:
            stream = container.streams[self._film.index]
            frames = self._whole(whole_frames(container.decode(stream)))
            if self._target is not None:
                frames = resample(frames, self._target, self.remarks)
            for frame in frames:
                yield shown(frame, stream.sample_aspect_ratio)

    def _whole(self, frames: Iterator) -> Iterator:
        """The frames; too few of them are a ValueError."""
        last = None
        for frame in frames:
            last = frame
            yield frame
        if last is None:
            raise ValueError("it holds no frames")
        end = self._film.end
        if end is not None and last.time is not None and last.time < end - max(1.0, 0.05 * end):
            raise ValueError(f"decoding ends after {last.time:.2f} s of {end:.2f} s: the file is damaged")


@contextlib.contextmanager
def opened(file: pathlib.Path | BinaryIO) -> Iterator:
    """A PyAV container, open for reading; whatever goes wrong is a ValueError that does not say where the file lies."""
    import av

    if not isinstance(file, pathlib.Path):
        file.seek(0)
    try:
        with av.open(str(file) if isinstance(file, pathlib.Path) else file) as container:
            for stream in container.streams.video:
                stream.thread_count = 1  # episodes run side by side, one process each
            yield container
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise ValueError(f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}") from None


def look(file: pathlib.Path | BinaryIO) -> Film:
    """Finds the film of a file and its pace from the time stamps of the packets, without decoding any.

    Raises:
      ValueError: there is no film, or the file ends before its header says.
    """
    with opened(file) as container:
        packets: dict[int, list] = {stream.index: [] for stream in container.streams.video}
        for packet in container.demux(container.streams.video) if packets else ():
            if packet.size and not packet.is_discard:
                times = (packet.dts, packet.pts, packet.duration)
                packets[packet.stream.index].append([time and float(time * packet.time_base) for time in times])
        stream, left_out = choose_film(container, {index: len(stamps) for index, stamps in packets.items()})
        stamps = packets[stream.index]
        times, joined = clock([dts for dts, _, _ in stamps], [pts for _, pts, _ in stamps])
        ends = [(pts if pts is not None else dts or 0.0) + (duration or 0.0) for dts, pts, duration in stamps]
        if stamps and not _is_whole(file, container, stream, max(ends), len(stamps)):
            length = _length(container, stream)
            raise ValueError(f"it ends after {max(ends):.2f} s, its header says {length:.2f} s: the file is truncated")
        rate = stream.average_rate or stream.guessed_rate
        pace = pace_of(times, float(rate) if rate else None)
        return Film(stream.index, pace, tuple(left_out), times[-1] if len(times) and not joined else None)


def clock(dts: list[float | None], pts: list[float | None]) -> tuple[np.ndarray, bool]:
    """When frames are shown, from their packets in the order of the file.

    Recordings that were joined begin anew in the middle: the second then follows the first at its usual distance.

    Args:
      dts, pts: seconds at which each is decoded and shown; None where the file does not say.

    Returns:
      Seconds, sorted, float64[n], empty where a time is not known; and whether there is such a joint.
    """
    shown_at = pts if None not in pts else dts
    if None in shown_at or not shown_at:
        return np.empty(0), False
    order = np.array([np.nan if time is None else time for time in dts])
    joints = np.flatnonzero(np.diff(order) < 0) + 1
    parts = [np.sort(part) for part in np.split(np.array(shown_at, np.float64), joints)]
    distances = np.concatenate([np.diff(part) for part in parts])
    for number in range(1, len(parts)):
        follows = parts[number - 1][-1] + (np.median(distances) if len(distances) else 0.0)
        parts[number] = parts[number] - parts[number][0] + follows
    return np.concatenate(parts), len(parts) > 1


def choose_film(container, counts: dict[int, int] | None = None):
    """The stream that is the film, and the others in words.

    Args:
      container: of PyAV.
      counts: packets of each video stream; where absent and needed they are counted, which reads the whole file.

    Raises:
      ValueError: there is none, or its frames are too large.
    """
    from av.stream import Disposition

    streams = [stream for stream in container.streams.video if stream.codec_context is not None]
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    films = [stream for stream in streams if not stream.disposition & pictures]
    left_out = [f"cover picture ({stream.codec_context.name})" for stream in streams if stream not in films]
    if not films:
        raise ValueError("the file has no video stream" + (", only a cover picture" if streams else ""))
    if len(films) > 1:
        if counts is None:
            counts = Counter(packet.stream.index for packet in container.demux(films) if packet.size)
            container.seek(0)
        for name, is_other in (("still picture", lambda s: counts[s.index] < 2), ("depth or mask", _is_depth)):
            rest = [stream for stream in films if not is_other(stream)]
            if rest and len(rest) < len(films):
                left_out += [f"{name} ({_describe(stream)})" for stream in films if stream not in rest]
                films = rest
    films.sort(key=lambda stream: (not stream.disposition & Disposition.default, stream.index))
    for number, stream in enumerate(films[1:]):
        left_out.append(f"{_ORDINALS[min(number, 2)]} video stream ({_describe(stream)})")
    check_size(films[0].width, films[0].height)
    return films[0], left_out


def _describe(stream) -> str:
    title = stream.metadata.get("title") or stream.metadata.get("handler_name", "")
    size = f"{stream.codec_context.name}, {stream.width} x {stream.height}"
    return f"{size}, '{title}'" if title not in ("", "VideoHandler") else size


def _is_depth(stream) -> bool:
    deep = _is_deep(stream.codec_context.format)
    return deep or modalities.is_depth(stream.metadata.get("title") or stream.metadata.get("handler_name", ""))


def _is_deep(pixels) -> bool:
    """Whether a pixel format has one channel of more than 8 bits, as depth maps have."""
    return pixels is not None and len(pixels.components) == 1 and pixels.components[0].bits > 8


def pace_of(times: np.ndarray, stated: float | None) -> Pace:
    """The pace of frames.

    Args:
      times: float64[n], seconds, sorted, of all frames; empty where the file has no time stamps.
      stated: frames per second as the container says.

    Returns:
      The frame rate, `stated` where the time stamps agree with it to 1 %, else that of the time stamps, a whole number
      where it is one within their unrest. Uneven are frames of
      which any half second holds a quarter more or fewer than its share.
    """
    stated = round(stated, 6) if stated and stated <= _PLAUSIBLE else None
    if len(times) < 2 or times[0] == times[-1]:
        return Pace(stated)
    mean = (len(times) - 1) / (times[-1] - times[0])
    ahead = max(1, min(round(mean / 2), (len(times) - 1) // 2))
    spans = (times[ahead:] - times[:-ahead]) * mean / ahead
    if spans.max() > 1 + _EVEN or spans.min() < 1 - _EVEN:
        return Pace(None, float(mean / spans.max()), float(mean / max(spans.min(), 1e-3)))
    # least squares, for which a late frame at either end hardly matters; and the median, for which dropped ones do not
    number = np.arange(len(times)) - (len(times) - 1) / 2
    interval = float(number @ (times - times.mean()) / (number @ number))
    unrest = float(np.abs(times - times.mean() - number * interval).max()) / (times[-1] - times[0])
    rates = (1 / interval, float(mean / np.median(spans)))
    if stated is not None and any(abs(stated / rate - 1) <= 0.01 for rate in rates):
        return Pace(stated)
    whole = next((round(rate) for rate in rates if abs(round(rate) / rate - 1) <= unrest + 5e-4), 0)
    return Pace(float(whole) if whole else round(rates[0], 3))


def _length(container, stream) -> float:
    """Seconds at which the header says that the film ends; 0 where it does not say."""
    if stream.duration is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    return (container.duration or 0) / 1e6


def _is_whole(file: pathlib.Path | BinaryIO, container, stream, end: float, packets: int) -> bool:
    """Whether a file reaches as far as its header says. libav reads one that was cut off without complaint.

    Args:
      end: seconds at which the last frame that is there ends, or begins where its duration is not known.
      packets: how many frames are there.
    """
    if "matroska" in container.format.name:
        # tells no frame's duration, and its length is that of the sound too; but it tells its size
        whole = _matroska_is_whole(file)
        if whole is not None:
            return whole
    length = _length(container, stream)
    # where the header counts the frames, the last of them may be held long
    return end >= length - max(1.0, 0.05 * length) or bool(stream.frames and packets >= stream.frames)


def _matroska_is_whole(file: pathlib.Path | BinaryIO) -> bool | None:
    """Whether a Matroska or WebM file has as many bytes as its segment says; None where that does not say.

    See RFC 8794 (EBML) and RFC 9559 (Matroska).
    """
    with contextlib.ExitStack() as stack:
        if isinstance(file, pathlib.Path):
            file = stack.enter_context(open(file, "rb"))
        size = file.seek(0, 2)
        file.seek(4)  # the identifier of the EBML header
        file.seek(_ebml_size(file) or 0, 1)
        if file.read(4) != b"\x18\x53\x80\x67":  # Segment
            return None
        length = _ebml_size(file)
        return None if length is None else file.tell() + length <= size


def _ebml_size(file: BinaryIO) -> int | None:
    """A size of EBML: in as many bytes as the first of them has leading zero bits, and one; all ones are unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    width = 9 - first[0].bit_length()
    size = int.from_bytes(first + file.read(width - 1), "big") & ((1 << 7 * width) - 1)
    return None if size == (1 << 7 * width) - 1 else size


def whole_frames(frames: Iterator) -> Iterator:
    """Decoded frames, as long as they are sound; a damaged one is a ValueError."""
    for number, frame in enumerate(frames):
        if frame.is_corrupt:
            raise ValueError(f"frame {number} is damaged")
        yield frame


def resample(frames: Iterator, fps: float, remarks: Counter | None = None) -> Iterator:
    """Of frames with a `.time` in seconds, those on screen at 0, 1/fps, 2/fps, ... after the first.

    A frame counts as on screen a quarter of an interval early, so that rounded time stamps do not shift the choice.
    Frames that are taken more than once are counted among `remarks`.
    """
    held, start, count, repeats = None, None, 0, 0
    for frame in frames:
        if frame.time is None:
            raise ValueError("its frames have no time stamps, --fps cannot be met; convert it with --fps native")
        if held is not None and frame.time < held.time:
            raise ValueError(f"its time stamps go back, from {held.time:.2f} s to {frame.time:.2f} s, --fps cannot be "
                             "met: convert it with --fps native, or write the video again")  # fmt: skip
        start = frame.time if start is None else start
        while held is not None and frame.time - start > (count + 0.25) / fps:
            yield held
            count += 1
            repeats += 1
        if remarks is not None and repeats > 1:
            remarks[REPEATED] += repeats - 1
        held, repeats = frame, 0
    if held is not None and held.time - start > (count - 0.25) / fps:
        yield held


def shown(frame, pixel_aspect=None) -> np.ndarray:
    """A PyAV frame as players show it.

    Args:
      frame: the frame. pixel_aspect: width of a pixel by its height; None or 0: square.

    Returns:
      uint8[H, W, 3] with square pixels, turned and mirrored by the display matrix; uint16[H, W] of a depth map.
    """
    from av.sidedata.sidedata import Type

    check_size(frame.width, frame.height)
    image = frame.to_ndarray(format="gray16le" if _is_deep(frame.format) else "rgb24")
    aspect = float(pixel_aspect or 1)
    if 0.1 < aspect < 10 and abs(aspect - 1) > 0.01:
        image = _with_square_pixels(image, aspect)
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    return image if matrix is None else _displayed(image, np.frombuffer(bytes(matrix), np.int32))


def _with_square_pixels(image: np.ndarray, aspect: float) -> np.ndarray:
    """The image wider, or higher, by the aspect of its pixels: nothing is thrown away."""
    from PIL import Image

    height, width = image.shape[:2]
    size = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
    check_size(*size)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _displayed(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """An image by its display matrix, to the nearest quarter turn: pixel (x, y) is shown at (a x + c y, b x + d y).

    Args:
      matrix: int32[9], a, b, u, c, d, v, x, y, w, as in ISO/IEC 14496-12.
    """
    a, b, c, d = (float(matrix[i]) for i in (0, 1, 3, 4))
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, across, down = np.swapaxes(image, 0, 1), c, b
    else:
        across, down = a, d
    return image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
