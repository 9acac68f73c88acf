"""The opener of still images: depth of values, orientation, pages, alpha and limits, against Pillow and numpy."""

import io
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lapa_jax.data import image_files, images
from lapa_jax.data.image_files import COLOUR, DEEP, GREY, INDEXED, SCALED, TRANSPARENT, kind_of, open_frame, open_pages

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 8, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
DEEP_VALUES = RNG.integers(0, 1 << 16, (24, 32)).astype(np.uint16)


def file_of(image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scaled(values: np.ndarray) -> np.ndarray:
    """65535 is white, and so is its share of every value below: in exact arithmetic, without the table."""
    grey = ((values.astype(np.int64) * 255 * 2 + 65535) // (2 * 65535)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_and_never_clipped(kind):
    remarks, data = Counter(), file_of(DEEP_VALUES, kind)
    np.testing.assert_array_equal(open_frame(data, remarks), scaled(DEEP_VALUES))
    assert remarks == {SCALED: 1} and kind_of(data) == DEEP
    np.testing.assert_array_equal(open_frame(DEEP_VALUES), scaled(DEEP_VALUES))
    np.testing.assert_array_equal(open_frame(DEEP_VALUES.astype(">u2")[..., None]), scaled(DEEP_VALUES))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "array"])
@pytest.mark.parametrize("bits", [10, 12])
def test_fewer_bits_stored_in_sixteen_need_a_white(kind, bits):
    """In exact arithmetic, as above. The PPM of Pillow says 65535 is white."""
    white = (1 << bits) - 1
    values = DEEP_VALUES % (white + 1)
    frame = values if kind == "array" else file_of(values, kind)
    with pytest.raises(ValueError, match=rf"is {values.max()}, as of a camera of {bits} bits: .* --white {white}, or"):
        open_frame(frame)
    expected = ((values.astype(np.int64) * 255 * 2 + white) // (2 * white)).astype(np.uint8)
    np.testing.assert_array_equal(open_frame(frame, white=white)[..., 0], expected)
    np.testing.assert_array_equal(open_frame(frame, white=65535), scaled(values))
    with pytest.raises(ValueError, match=f"has the value {values.max()}, and --white is 300"):
        open_frame(frame, white=300)
    assert open_frame(np.zeros_like(values)).max() == 0, "nothing is black to every camera"


def test_a_tiff_that_says_how_many_bits_it_has_needs_no_white():
    """Pillow cannot write 12 bits: the tag of a file of 16 is turned into 12 and its values are packed by hand."""
    import struct

    values = (DEEP_VALUES[:4, :6] % 4096).astype(int)
    pairs = values.reshape(-1, 2)
    packed = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in pairs.tolist())
    tags = [(256, 3, 6), (257, 3, 4), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 4),
            (279, 4, len(packed))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    data = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory
    np.testing.assert_array_equal(open_frame(data)[..., 0], (values * 510 + 4095) // 8190)


def test_sixteen_bits_of_each_colour_are_scaled():
    """Pillow cannot write such a PNG, so it is written by hand."""
    import struct
    import zlib

    values = RNG.integers(0, 1 << 16, (4, 5, 3)).astype(">u2")
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(open_frame(data).astype(int) - values.astype(int) / 257).max() <= 1


def test_floats_of_0_to_1_are_colours_and_others_are_refused():
    share = RNG.random((24, 32)).astype(np.float32)
    data = file_of(Image.fromarray(share), "TIFF")
    expected = np.repeat(np.rint(share * 255).astype(np.uint8)[..., None], 3, -1)
    np.testing.assert_array_equal(open_frame(data), expected)
    np.testing.assert_array_equal(open_frame(share.astype(np.float64)), expected)
    for wrong in (share * 255, share - 0.5, np.full((4, 4), np.nan, np.float32)):
        with pytest.raises(ValueError, match="floats"):
            open_frame(file_of(Image.fromarray(wrong.astype(np.float32)), "TIFF"))
    for wrong in (DEEP_VALUES.astype(np.int32), DEEP_VALUES.astype(np.int64)[..., None]):
        with pytest.raises(ValueError, match="does not say what is white"):
            open_frame(wrong)


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
"""EXIF 2.32, table 6: where row 0 and column 0 of what is stored are shown."""


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind, tolerance", [("JPEG", 12), ("PNG", 0), ("WEBP", 0), ("TIFF", 0)])
def test_orientation(orientation, kind, tolerance):
    tags = Image.Exif()
    tags[274] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = file_of(COLOURS, kind, exif=tags, **options)
    shown, expected = open_frame(data), TURNS[orientation](COLOURS)
    assert shown.shape == expected.shape and np.abs(shown.astype(int) - expected).max() <= tolerance
    if kind == "JPEG":
        assert image_files.is_plain_jpeg(data) == (orientation == 1), "a turned JPEG is not stored as it is"


def test_damaged_exif_is_no_matter():
    tags = Image.Exif()
    tags[274] = 6
    data = file_of(COLOURS, "JPEG", exif=tags, quality=95)
    at = data.index(b"Exif\0\0") + 6
    for junk in (b"XXXX", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"):
        broken = data[:at] + junk + data[at + len(junk) :]
        np.testing.assert_array_equal(open_frame(broken), images.decode(broken))


@pytest.mark.parametrize("mode, kind", [("1", INDEXED), ("L", INDEXED), ("P", INDEXED), ("LA", INDEXED),
                                        ("RGB", COLOUR), ("RGBA", COLOUR)])  # fmt: skip
def test_kinds_and_colours(mode, kind):
    image = Image.fromarray(COLOURS).convert(mode)
    data = file_of(image, "PNG")
    assert kind_of(data) == kind
    np.testing.assert_array_equal(open_frame(data), np.asarray(image.convert("RGB")))
    assert kind_of(file_of(COLOURS, "JPEG")) == COLOUR and kind_of(file_of(image.convert("L"), "JPEG")) == GREY


def test_alpha_is_left_out_and_told_of():
    alpha = np.full((24, 32, 1), 255, np.uint8)
    for least, told in ((255, {}), (254, {TRANSPARENT: 1}), (0, {TRANSPARENT: 1})):
        alpha[3, 4], remarks = least, Counter()
        data = file_of(np.concatenate([COLOURS, alpha], -1), "PNG")
        np.testing.assert_array_equal(open_frame(data, remarks), COLOURS)
        assert +remarks == told
    np.testing.assert_array_equal(open_frame(np.concatenate([COLOURS, alpha], -1)), COLOURS)


def test_cmyk_is_converted():
    red = file_of(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(open_frame(red)[8, 8].astype(int) - (255, 0, 0)).max() < 12


@pytest.mark.parametrize("kind, ending", [("TIFF", "tif"), ("PNG", "png"), ("WEBP", "webp")])
def test_pages_and_animations(tmp_path, kind, ending):
    pages = [Image.fromarray(np.full((16, 16, 3), 40 * k + 10, np.uint8)) for k in range(4)]
    path = tmp_path / f"stack.{ending}"
    pages[0].save(path, kind, save_all=True, append_images=pages[1:], lossless=True)
    shown = [int(page.mean().round()) for page in open_pages(path)]
    assert shown == [10, 50, 90, 130]
    for read in (lambda: list(open_pages(path, only_one=True)), lambda: open_frame(path.read_bytes())):
        with pytest.raises(ValueError, match="it holds 4 pages or frames"):
            read()


def test_previews_are_no_pages(tmp_path):
    """A phone's MPO file holds a preview behind its image; a pyramid TIFF holds smaller copies of its own."""
    first, second = Image.fromarray(COLOURS), Image.fromarray(COLOURS[::2, ::2])
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    assert Image.open(tmp_path / "a.jpg").format == "MPO"
    assert [page.shape for page in open_pages(tmp_path / "a.jpg")] == [COLOURS.shape]
    from PIL import TiffImagePlugin

    reduced = TiffImagePlugin.ImageFileDirectory_v2()
    reduced[254] = 1
    first, second = Image.fromarray(COLOURS), Image.fromarray(COLOURS[::2, ::2])
    second.encoderinfo = {"tiffinfo": reduced}
    first.save(tmp_path / "b.tif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(open_frame((tmp_path / "b.tif").read_bytes()), COLOURS)


@pytest.mark.parametrize("shape", [(24, 32), (24, 32, 1), (24, 32, 3), (24, 32, 4), (3, 24, 32)])
def test_arrays_of_every_layout(shape):
    array = RNG.integers(0, 256, shape).astype(np.uint8)
    image = open_frame(array)
    assert image.shape == (24, 32, 3) and image.dtype == np.uint8
    expected = array.transpose(1, 2, 0) if shape[0] == 3 else array.reshape(24, 32, -1)[..., :3]
    np.testing.assert_array_equal(image, np.broadcast_to(expected, (24, 32, 3)))


@pytest.mark.parametrize("array", [np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros(7, np.uint8),
                                   np.zeros((2, 4, 4, 3), np.uint8), np.zeros((4, 4, 3), complex)])  # fmt: skip
def test_what_is_no_image(array):
    with pytest.raises(ValueError):
        open_frame(array)


@pytest.mark.parametrize("data", [b"", b"no image", file_of(COLOURS, "PNG")[:-40], file_of(COLOURS, "TIFF")[:60]])
def test_damage_is_a_value_error(data):
    with pytest.raises(ValueError):
        open_frame(data)


MEASURED = """
import resource, sys
from lapa_jax.data import image_files
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    image_files.open_frame(open(sys.argv[1], "rb").read())
except ValueError as error:
    print(error, "|", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("side", [12_000, 20_000])
def test_images_that_would_fill_the_memory_are_refused(root, tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "large.png")
    done = subprocess.run([sys.executable, "-c", MEASURED, tmp_path / "large.png"], capture_output=True, text=True,
                          check=False, env={**os.environ, "PYTHONPATH": str(root)})  # fmt: skip
    message, memory = done.stdout.split("|")
    assert "pixels" in message and int(memory) < 100, (done.stdout, done.stderr)


def test_the_limit_holds_for_jpegs_and_arrays(monkeypatch):
    monkeypatch.setattr(image_files, "LARGEST", 500)
    for frame in (file_of(COLOURS, "JPEG"), file_of(COLOURS, "PNG"), COLOURS, COLOURS[..., :1]):
        with pytest.raises(ValueError, match="32 x 24 pixels"):
            open_frame(frame)
