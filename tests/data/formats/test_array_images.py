import io

import h5py
import numpy as np
import pytest
from PIL import Image

from lapa_jax.data.formats import array_images, hdf5, npz

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 16, 3), np.uint8)


def coded(kind: str) -> list[bytes]:
    files = []
    for image in IMAGES:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, kind)
        files.append(buffer.getvalue())
    return files


def padded(files: list[bytes]) -> np.ndarray:
    rows = np.zeros((len(files), max(map(len, files)) + 7), np.uint8)
    for row, data in zip(rows, files):
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return rows


@pytest.mark.parametrize("chunks", [None, (1, 8, 8, 3), (5, 4, 4, 1), (6, 8, 8, 3)])
def test_images_come_one_by_one_whatever_the_chunks(tmp_path, chunks, monkeypatch):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = file.create_dataset("x", data=IMAGES, chunks=chunks)
        for block in (1, 600, 1 << 20):
            monkeypatch.setattr(array_images, "_BLOCK", block)
            np.testing.assert_array_equal(list(hdf5.read_images(data)), IMAGES)


def forms() -> dict[str, np.ndarray]:
    """The same images in the forms that recorders write."""
    unit = IMAGES.astype(np.float64) / 255
    alpha = np.concatenate([IMAGES, np.full((6, 12, 16, 1), 255, np.uint8)], 3)
    return {
        "uint8": IMAGES,
        "channels_first": np.moveaxis(IMAGES, 3, 1),
        "alpha": alpha,
        "float32": unit.astype(np.float32),
        "float16 of 0 to 1": unit.astype(np.float16),
        "floats of 0 to 255": IMAGES.astype(np.float64),
        "floats, channels first": np.moveaxis(unit, 3, 1).astype(np.float32),
        "int64": IMAGES.astype(np.int64),
        "padded": padded(coded("PNG")),
        "texts of bytes": np.array(coded("PNG"), "S"),
    }


@pytest.mark.parametrize("name", forms())
@pytest.mark.parametrize("ending", ["h5", "npz", "packed.npz"])
def test_every_form_is_read_as_the_same_images(tmp_path, name, ending):
    path, array = tmp_path / f"x.{ending}", forms()[name]
    if ending == "h5":
        with h5py.File(path, "w") as file:
            file["cam"] = array
        with hdf5.open_hdf5(path) as file:
            found = list(hdf5.read_images(file["cam"]))
    else:
        (np.savez_compressed if "packed" in ending else np.savez)(path, cam=array)
        found = list(array_images.frames("cam", npz.arrays(path)["cam"]))
    found = [np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) if isinstance(f, bytes) else f for f in found]
    assert all(frame.dtype == np.uint8 for frame in found)
    np.testing.assert_array_equal(found, IMAGES)


def test_files_of_varying_length_in_hdf5(tmp_path):
    for kind in ("PNG", "JPEG"):
        files = coded(kind)
        with h5py.File(tmp_path / f"{kind}.h5", "w") as file:
            vectors = file.create_dataset("v", 6, h5py.vlen_dtype(np.uint8))
            for i, data in enumerate(files):
                vectors[i] = np.frombuffer(data, np.uint8)
            file["padded"] = padded(files)
            for data in file.values():
                assert list(hdf5.read_images(data)) == files, "byte for byte, without what pads them"


def test_what_is_no_image():
    floats = np.zeros((4, 16, 16, 3), np.float32)
    for name, array in (
        ("pose", np.zeros((4, 4, 4))),
        ("agentview_depth", np.zeros((4, 16, 16, 1), np.float32)),
        ("normals", floats),
        ("hands", np.random.default_rng(0).uniform(size=(4, 2, 21, 3))),
        ("bytes", np.zeros((4, 30), np.uint8)),
        ("state", np.zeros((4, 3))),
        ("none", floats[:0]),
        ("pickled", np.array([{}, {}], object)),
        ("flag", np.zeros((4, 16, 16, 3), bool)),
    ):
        assert array_images.layout(name, array) is None, name
    assert array_images.layout("cam", floats) == array_images.LAST
    assert not array_images.problem(floats)
    assert array_images.problem(floats - 1).startswith("values from -1 to -1, images are 0 to 255")
    assert "values from 0 to 300" in array_images.problem(np.full((2, 8, 8, 3), [0, 300, 0]))
    for name, array, like in (
        ("cam", floats - 1, True),
        ("cam", np.zeros((4, 16, 16), np.uint8), True),
        ("views", np.zeros((4, 2, 16, 16, 3), np.uint8), True),
        ("pose", np.zeros((4, 4, 4)), False),
        ("feature", np.zeros((4, 16, 16, 768), np.float32), False),
        ("depth", np.zeros((4, 16, 16, 1), np.uint16), False),
    ):
        assert array_images.like_images(name, array) is like, name
    with pytest.raises(ValueError, match="'bytes' holds no images"):
        list(array_images.frames("bytes", np.zeros((4, 30), np.uint8)))
    torn = padded(coded("JPEG"))
    torn[3, :4] = 0
    with pytest.raises(ValueError, match="a row of 'cam' .* is no JPEG or PNG file"):
        list(array_images.frames("cam", torn))
