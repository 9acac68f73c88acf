"""Rows filled up to the width of a mixture, against the mixture itself."""

import numpy as np

from lapa_jax.data import pipeline
from lapa_jax.data.samples.padded import as_wide_as
from tests.data.samples import make


def test_a_part_is_filled_up_as_its_mixture_does_it(tmp_path):
    arm = make.write(tmp_path / "arm", [6, 5], cameras=(), widths={"action": 3, "state": 2})
    hand = make.write(tmp_path / "hand", [4], cameras=(), widths={"action": 5, "state": 2})
    data = {"samples": "chunks", "fields": ("action", "state"), "chunk_length": 3}
    parts = tuple({"path": str(folder), "weight": 1.0} for folder in (arm, hand))
    both = pipeline.build({**data, "mixture": parts}, "train")
    alone = pipeline.build({**data, "path": str(arm)}, "train")
    shapes = {name: values.shape[1:] for name, values in both.batch([]).items()}
    padded, rows = as_wide_as(alone, shapes), range(len(alone))
    want = {name: values for name, values in both.batch(rows).items() if name != "dataset_id"}
    got = padded.batch(rows)
    assert got.keys() == want.keys() and got["action"].shape == (len(alone), 3, 5)
    for name, values in want.items():
        np.testing.assert_array_equal(got[name], values)
    assert padded.batch([])["action"].shape == (0, 3, 5) and padded[2]["action_dims"].tolist() == [1, 1, 1, 0, 0]
    assert padded.meta() == alone.meta() and len(padded) == len(alone) and padded.locate(7) == alone.locate(7)
    assert as_wide_as(both, shapes) is both
    assert as_wide_as(alone, {"action": (3, 3), "state": (2,)}) is alone
    narrow = as_wide_as(padded, {"action": (3, 2)})
    assert narrow is padded, "what is wider is left to whoever checks shapes"
