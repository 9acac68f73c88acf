"""The opener of videos, on small files as cameras, browsers and downloaders write them."""

import bisect
import fractions
import io
import itertools
import struct

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lapa_jax.data import image_files
from lapa_jax.data.video import REPEATED, Video, clock, look, pace_of, shown
from tests.data import videos

MILLISECOND = fractions.Fraction(1, 1000)


def write(path, times, codec="libx264", pix="yuv420p", frames=None, held=None, **how):
    """A video of frames that tell their number, shown at `times` in ms; `held`: how long the last is shown, in ms.

    `container`: options of the container. `aspect`: of its pixels. `kind`: of the container.
    """
    frames = [videos.frame(k) for k in range(len(times))] if frames is None else frames
    with av.open(str(path), "w", format=how.get("kind"), options=how.get("container", {})) as container:
        stream = container.add_stream(codec, rate=1000, options={"crf": "1"} if codec == "libx264" else {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = pix, MILLISECOND
        stream.codec_context.max_b_frames = 0
        if "aspect" in how:
            stream.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio = fractions.Fraction(how["aspect"])
        packets = []
        for time, frame in zip(times, frames):
            image = av.VideoFrame.from_ndarray(frame, format="gray16le" if frame.ndim == 2 else "rgb24")
            image.pts, image.time_base = int(time), MILLISECOND
            packets += stream.encode(image)
        packets += stream.encode(None)
        steps = [*np.diff(times), held or (times[-1] - times[-2] if len(times) > 1 else 100)]
        for packet, step in zip(packets, steps, strict=True):
            packet.duration = round(fractions.Fraction(int(step), 1000) / packet.time_base)
            container.mux(packet)
    return path


def numbers(frames) -> list[int]:
    return [videos.number_of(frame) for frame in frames]


def even(count: int, step: int = 100) -> list[int]:
    return [k * step for k in range(count)]


# ---- the stream that is the film ----


def box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", 8 + len(data)) + kind + data


def with_cover(data: bytes, first: bool, image: str) -> bytes:
    """An mp4 with a cover in its metadata, before or after the tracks, as iTunes and downloaders write it."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "white").save(buffer, image)
    code = {"JPEG": 13, "PNG": 14}[image]
    cover = box(b"covr", box(b"data", struct.pack(">II", code, 0) + buffer.getvalue()))
    handler = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    user = box(b"udta", box(b"meta", bytes(4) + handler + box(b"ilst", cover)))
    parts, at = [], 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        part = data[at + 8 : at + size]
        if kind == b"moov":
            header = struct.unpack(">I", part[:4])[0]
            part = part[:header] + user + part[header:] if first else part + user
        parts.append(box(kind, part))
        at += size
    return b"".join(parts)


@pytest.mark.parametrize("first, image", [*itertools.product((True, False), ("JPEG", "PNG"))])
def test_a_cover_is_no_film(tmp_path, first, image):
    path = write(tmp_path / "v.mp4", even(6))
    path.write_bytes(with_cover(path.read_bytes(), first, image))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2, "the cover is a stream of its own"
    video = Video(path)
    assert numbers(video) == list(range(6)) and video.fps == 10
    assert video.left_out == (f"cover picture ({'mjpeg' if image == 'JPEG' else 'png'})",)
    # the same out of an archive, where a file is no path
    assert numbers(Video(io.BytesIO(path.read_bytes()))) == list(range(6))


def two_streams(path, first, second, titles=("", ""), rates=(10, 10)):
    """Two streams of (codec, pixel format, frames), interleaved by time."""
    with av.open(str(path), "w") as container:
        streams = []
        for (codec, pix, frames), title, rate in zip((first, second), titles, rates):
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt, stream.bit_rate = pix, 4_000_000
            stream.metadata["title"] = title
            streams.append((stream, frames))
        for k in range(max(len(frames) for _, frames in streams)):
            for stream, frames in streams:
                if k < len(frames):
                    kind = "gray16le" if frames[k].ndim == 2 else "rgb24"
                    image = av.VideoFrame.from_ndarray(frames[k], format=kind)
                    image.pts, image.time_base = k, fractions.Fraction(1, 10)
                    container.mux(stream.encode(image))
        for stream, _ in streams:
            container.mux(stream.encode(None))
    return path


COLOUR = ("mpeg4", "yuv420p", [videos.frame(k) for k in range(6)])
OTHER = ("mpeg4", "yuv420p", [255 - videos.frame(k) for k in range(6)])
STILL = ("mjpeg", "yuvj420p", [np.full((48, 64, 3), 250, np.uint8)])
DEPTH = ("ffv1", "gray16le", [np.full((48, 64), 3000 + 10 * k, np.uint16) for k in range(6)])


@pytest.mark.parametrize(
    "streams, titles, left_out",
    [
        ((COLOUR, OTHER), ("", ""), "second video stream (mpeg4, 64 x 48)"),
        ((COLOUR, OTHER), ("", "wrist"), "second video stream (mpeg4, 64 x 48, 'wrist')"),
        ((STILL, COLOUR), ("", ""), "still picture (mjpeg, 64 x 48)"),
        ((DEPTH, COLOUR), ("", ""), "depth or mask (ffv1, 64 x 48)"),
        ((OTHER, COLOUR), ("DEPTH", "COLOR"), "depth or mask (mpeg4, 64 x 48, 'DEPTH')"),
    ],
)
def test_other_streams_are_left_out_by_name(tmp_path, streams, titles, left_out):
    video = Video(two_streams(tmp_path / "v.mkv", *streams, titles))
    assert numbers(video) == list(range(6)) and video.left_out == (left_out,)


def test_what_the_file_marks_as_default_is_the_film(tmp_path):
    path = two_streams(tmp_path / "v.mkv", OTHER, COLOUR)
    data = path.read_bytes()
    # the element FlagDefault (0x88) of the first track, which PyAV cannot set, in place of a void of its size
    with av.open(str(path)) as container:
        flags = [bool(stream.disposition & av.stream.Disposition.default) for stream in container.streams.video]
    if flags[0] == flags[1]:
        places = [i for i in range(len(data)) if data[i : i + 3] == b"\x88\x81\x00"]
        path.write_bytes(data[: places[1]] + b"\x88\x81\x01" + data[places[1] + 3 :])
    assert numbers(Video(path)) == list(range(6))


def test_depth_alone_keeps_its_values(tmp_path):
    write(tmp_path / "d.mkv", even(3), "ffv1", "gray16le", [np.full((48, 64), 1000 * k, np.uint16) for k in range(3)])
    frames = list(Video(tmp_path / "d.mkv"))
    assert [(frame.dtype, int(frame.max())) for frame in frames] == [(np.uint16, 1000 * k) for k in range(3)]
    assert image_files.kind_of(frames[0]) == image_files.DEEP
    assert image_files.open_frame(frames[2], white=65535)[0, 0].tolist() == [round(2000 / 257)] * 3, "not white"


def test_files_without_a_film(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        container.mux(stream.encode(silence(1)))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="no video stream$"):
        look(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(with_cover((tmp_path / "a.mp4").read_bytes(), True, "PNG"))
    with pytest.raises(ValueError, match="no video stream, only a cover picture"):
        look(tmp_path / "b.mp4")


def silence(seconds: int):
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100 * seconds), np.float32), format="fltp", layout="mono")
    sound.rate, sound.pts = 44100, 0
    return sound


# ---- how it is shown ----


def set_matrix(path, matrix) -> None:
    """Writes (a, b, c, d) into the header of an mp4's first track: pixel (x, y) is shown at (a x + c y, b x + d y)."""
    a, b, c, d = (65536 * x for x in matrix)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 8
    struct.pack_into(">9i", data, at + (32 if data[at - 4] else 20) + 16, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("matrix", [m for m in itertools.product((-1, 0, 1), repeat=4) if m[0] * m[3] - m[1] * m[2]
                                    and abs(np.array(m)).sum() == 2], ids=str)  # fmt: skip
def test_every_display_matrix(tmp_path, matrix):
    """All turns and mirrors: the four corners lie where ISO/IEC 14496-12 says that they are shown."""
    a, b, c, d = matrix
    corners = {(-1, -1): (230, 30, 30), (1, -1): (30, 230, 30), (-1, 1): (30, 30, 230), (1, 1): (230, 230, 230)}
    frame = np.zeros((32, 64, 3), np.uint8)
    for (x, y), colour in corners.items():
        frame[(y + 1) * 8 : (y + 1) * 8 + 16, (x + 1) * 16 : (x + 1) * 16 + 32] = colour
    path = write(tmp_path / "v.mp4", even(3), pix="yuv444p", frames=[frame] * 3)
    set_matrix(path, matrix)
    image = next(iter(Video(path)))
    height, width = image.shape[:2]
    assert (height, width) == ((64, 32) if a == 0 else (32, 64))
    for (x, y), colour in corners.items():
        column, row = a * x + c * y, b * x + d * y
        seen = image[height * (2 + row) // 4, width * (2 + column) // 4]
        assert np.abs(seen.astype(int) - colour).max() < 20, (x, y)


@pytest.mark.parametrize("aspect, size", [("2", (48, 128)), ("1/2", (96, 64)), ("4/3", (48, 85)), ("1", (48, 64))])
def test_pixels_become_square(tmp_path, aspect, size):
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, :8] = 255
    image = next(iter(Video(write(tmp_path / "v.mkv", even(3), frames=[frame] * 3, aspect=aspect))))
    assert image.shape[:2] == size
    edge = image[size[0] // 2].mean(-1) > 128
    assert edge.sum() == pytest.approx(size[1] / 8, abs=1) and edge[0], "the edge keeps its share of the width"


def test_absurd_sizes_are_refused(monkeypatch, tmp_path):
    path = write(tmp_path / "v.mp4", even(3))
    monkeypatch.setattr(image_files, "LARGEST", 1000)
    with pytest.raises(ValueError, match="64 x 48 pixels"):
        look(path)


# ---- how fast ----


@given(st.integers(1, 120), st.integers(2, 200), st.floats(0, 0.3), st.integers(0, 10**6), st.sampled_from([0, 1000]))
def test_even_frames_have_the_rate_of_their_time_stamps(rate, count, unrest, seed, stated):
    """Time stamps of whole milliseconds, each late by up to 30 % of an interval, of a container that says 1000."""
    late = np.random.default_rng(seed).uniform(-unrest / 2, unrest / 2, count)
    times = np.sort(np.round((np.arange(count) + late) / rate, 3))
    if count < 4 or times[-1] == times[0]:
        return  # so few tell little
    pace = pace_of(times, stated)
    if pace.fps is None:
        # half a second of few frames: a late one is more than a quarter
        assert rate <= 8 or count < 10
        return
    assert pace.fps == pytest.approx(rate, rel=0.02 + (unrest + 0.001 * rate) * 2 / (count - 1))


@pytest.mark.parametrize("rate, stated", [(30000 / 1001, 30000 / 1001), (25, 25), (12.5, 12.5), (50 / 3, 50 / 3)])
def test_the_containers_rate_is_kept_where_it_is_right(rate, stated):
    assert pace_of(np.arange(40) / rate, stated) == (round(stated, 6), None, None)
    assert pace_of(np.arange(40) / rate, 90_000).fps == pytest.approx(rate, rel=1e-4), "the clock of a container"
    assert pace_of(np.arange(40) / rate, stated / 2).fps == pytest.approx(rate, rel=1e-4), "an average"


@pytest.mark.parametrize("stated, fps", [(10.0, 10.0), (1000.0, None), (None, None)])
def test_a_single_frame_has_the_rate_of_its_container_if_any(stated, fps):
    assert pace_of(np.array([0.5]), stated).fps == fps


@given(st.integers(5, 60), st.floats(1.7, 8), st.integers(10, 60), st.integers(10, 60))
def test_two_paces_are_no_rate(slow, ratio, first, second):
    """The fps of both halves come out, and never their average."""
    fast = slow * ratio
    if min(first, second) < slow * ratio:
        return  # not long enough for half a second of each
    times = np.concatenate([np.arange(first) / fast, first / fast + np.arange(second) / slow])
    pace = pace_of(times, None)
    assert pace.fps is None
    assert pace.slowest == pytest.approx(slow, rel=0.1) and pace.fastest == pytest.approx(fast, rel=0.1)


def test_a_pause_is_no_rate_and_a_dropped_frame_is_none_either():
    times = np.arange(60) / 10
    pause = times + 3.0 * (np.arange(60) > 40)
    assert pace_of(pause, 10.0).fps is None
    assert pace_of(np.delete(times, 30), 10.0).fps == pytest.approx(10, rel=0.02)


def test_recordings_that_were_joined_go_on():
    first = [0.2, 0.5, 0.3, 0.4]
    decoded = [0.0, 0.1, 0.2, 0.3]
    times, joined = clock(decoded * 2, first * 2)
    np.testing.assert_allclose(times, 0.2 + np.arange(8) / 10)
    assert joined and not clock(decoded, first)[1] and clock([None], [None])[0].size == 0


def live(path, times):
    """As MediaRecorder writes it: WebM without a length, its clock in ms, no duration of frames."""
    write(path, times, "libvpx", kind="webm", container={"live": "1"})
    data = path.read_bytes()
    at = data.find(b"\x23\xe3\x83")  # DefaultDuration
    if at >= 0:
        length = 4 + (data[at + 3] & 127)
        path.write_bytes(data[:at] + b"\xec" + bytes([128 | length - 2]) + bytes(length - 2) + data[at + length :])
    return path


@pytest.mark.parametrize("fps", [7, 10, 15, 24, 30])
def test_recordings_of_browsers(tmp_path, fps):
    late = np.random.default_rng(fps).integers(-6, 7, 25)
    video = Video(live(tmp_path / "v.webm", np.round(np.arange(25) * 1000 / fps + late * (np.arange(25) > 0))))
    assert numbers(video) == list(range(25)) and video.fps == pytest.approx(fps, rel=0.02)


PHONE = [*(round(k * 100 / 3) for k in range(15)), *(500 + 200 * k for k in range(13))]
"""30 frames a second, then 5."""


@pytest.mark.parametrize("ending", ["mp4", "mkv", "webm"])
def test_variable_rates_are_refused_or_resampled(tmp_path, ending):
    path = write(tmp_path / f"v.{ending}", PHONE, "libvpx" if ending == "webm" else "libx264")
    with pytest.raises(ValueError, match=r"variable, 5 to \d+.* frames per second: resample it with --fps"):
        Video(path).open()
    assert Video(path, stated=12.0).open().fps == 12, "what the data say beside the video is their business"
    for target in (5, 10):
        video = Video(path, target)
        got = numbers(video)
        ticks = [1000 * k / target for k in range(len(got))]
        earliest, latest = ([bisect.bisect_right(PHONE, tick + early) - 1 for tick in ticks]
                            for early in (0.0, 250 / target + 1))  # fmt: skip
        assert all(a <= b <= c for a, b, c in zip(earliest, got, latest)), (earliest, got, latest)
        assert abs(ticks[-1] - PHONE[-1]) <= 1000 / target and video.fps == target
        assert video.remarks[REPEATED] == len(got) - len(set(got)) and (len(got) > len(set(got))) == (target == 10)
    with pytest.raises(ValueError, match="less than --fps 50"):
        Video(path, 50).open()


# ---- whether it is whole ----


@pytest.mark.parametrize("ending, held", [*itertools.product(["mp4", "mov", "mkv", "webm"], [100, 3000, 9000])])
def test_a_last_frame_may_be_held(tmp_path, ending, held):
    path = write(tmp_path / f"v.{ending}", even(10), "libvpx" if ending == "webm" else "libx264", held=held)
    with av.open(str(path)) as container:
        assert container.duration / 1e6 == pytest.approx(0.9 + held / 1000, abs=0.11), "the header counts it"
    video = Video(path)
    assert numbers(video) == list(range(10)) and video.fps == 10


def test_a_gif_may_pause_at_its_end(tmp_path):
    images = [Image.fromarray(videos.frame(k)) for k in range(8)]
    images[0].save(tmp_path / "v.gif", save_all=True, append_images=images[1:], duration=[100] * 7 + [4000])
    video = Video(tmp_path / "v.gif")
    assert len(list(video)) == 8 and video.fps == 10
    images[0].save(tmp_path / "w.gif", save_all=True, append_images=images[1:], duration=[100] * 4 + [4000] * 4)
    with pytest.raises(ValueError, match="frame rate is variable"):
        Video(tmp_path / "w.gif").open()


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_sound_may_be_longer(tmp_path, ending):
    with av.open(str(tmp_path / f"v.{ending}"), "w") as container:
        video, sound = container.add_stream("mpeg4", rate=10), container.add_stream("aac", rate=44100)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for k in range(8):
            container.mux(video.encode(av.VideoFrame.from_ndarray(videos.frame(k), format="rgb24")))
        container.mux(video.encode(None))
        container.mux(sound.encode(silence(6)))
        container.mux(sound.encode(None))
    assert len(list(Video(tmp_path / f"v.{ending}"))) == 8


@pytest.mark.parametrize("ending, share", [*itertools.product(["mkv", "mp4", "webm"], [0.4, 0.7, 0.95])])
def test_what_was_cut_off_is_refused(tmp_path, ending, share):
    """Noise, which takes much space, so that the cut falls into the frames. The index of the mp4 lies at its start."""
    noise = [np.random.default_rng(k).integers(0, 255, (48, 64, 3), dtype=np.uint8) for k in range(60)]
    codec = "libvpx" if ending == "webm" else "libx264"
    options = {"movflags": "faststart"} if ending == "mp4" else {}
    path = write(tmp_path / f"v.{ending}", even(60), codec, frames=noise, container=options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError):
        list(Video(path))
    path.write_bytes(data)
    assert len(list(Video(path))) == 60


def test_the_same_frame_as_another_reader(tmp_path, shared):
    """A real clip: what is shown is what PyAV's own conversion gives where nothing is to be turned."""
    path = shared / "data/real_clips/bridge_real_1.mp4"
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        np.testing.assert_array_equal(shown(frame), np.asarray(frame.to_image()))
