"""tools/bench_loader.py: its table at a small size, and what it refuses."""

import re

import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.shards.step_shards import dataset_folder
from tools import bench_loader


def test_the_loader_beside_bare_decoders(capsys):
    bench_loader.main([str(dataset_folder("sample")), "--image_size", "32", "--scaled_decoding", "--pairs", "640",
                       "--threads", "1"])  # fmt: skip
    row = re.compile(r"^\| ([\w, ]+?) \|.*\| ([\d.]+) \([\d. to]+\) \|$", re.MULTILINE)
    shares = dict(row.findall(capsys.readouterr().out))
    assert shares["simplejpeg, bare"] == "1.00" and {"loader", "simplejpeg, all pixels, bare"} <= shares.keys()
    assert 0 < float(shares["loader"]) < 1.5


def test_refusals_are_one_line():
    with pytest.raises(UserError, match="--scaled_decoding needs --image_size"):
        bench_loader.main(["shards", "--scaled_decoding"])
    with pytest.raises(UserError, match="too few to measure"):
        bench_loader.main(["shards", "--pairs", "3"])
