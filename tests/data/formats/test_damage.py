"""Damaged files of every format: an error with a reason or a counted drop, never a crash without a message or a hang.

`pytest tests/data/formats/test_damage.py --mutations 2000` is the long version.
"""

import importlib
import re

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data import formats
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.run import convert
from tests.data.formats.damage import damage, outcomes

UNNOTICED = {"video": 0.04, "webdataset": 0.04, "lerobot": 0.04, "lapa": 0.15}
"""Share of the damages that give other content without an error, at most: flipped bits within the compressed data of a
picture or video, or in a text, where the format has no checksum that would tell. Every other format here has one."""


def maker(name: str):
    return importlib.import_module(f"tests.data.formats.make_{name}").make


@pytest.mark.parametrize("name", formats.NAMES)
def test_random_damage(tmp_path, name, pytestconfig):
    mutations = pytestconfig.getoption("mutations")
    found = outcomes(name, maker(name), tmp_path, mutations)
    print(f"{name}: {dict(found)}")
    assert found.total() == mutations
    assert found["lost"] == 0, "an episode is gone without a word"
    assert found["hung"] == 0 and found["refused"] > 0.4 * mutations
    assert found["different"] <= UNNOTICED.get(name, 0) * mutations


@pytest.mark.parametrize("name", formats.NAMES)
def test_a_damaged_file_is_one_clear_line_of_the_converter(tmp_path, name):
    """Three damages a format through the whole converter: the error names the source, and nothing reads as finished."""
    rng = np.random.default_rng(0)
    source = tmp_path / "source"
    maker(name)(source)
    files = sorted((p for p in source.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path = files[-1]
    good, errors = path.read_bytes(), 0
    for k in range(3):
        path.write_bytes(damage(good[: len(good) // (k + 1)], rng))
        out = tmp_path / f"out{k}"
        try:
            convert(source, out, Options(format=name, size=16), workers=0)
        except UserError as error:
            errors += 1
            assert "\n" not in str(error) and not (out / "dataset.json").exists()
            assert re.search(rf"{source.name}|{path.name}|{path.stem}", str(error)), str(error)
    assert errors >= 2
