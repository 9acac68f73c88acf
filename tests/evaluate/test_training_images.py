"""What images of a training show: the held-out pairs in which most changes, decoded from their own codes."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from lapa_jax.evaluate.training_images import SEQUENCES, STARTS, FramePairs
from lapa_jax.train.sharding import make_mesh

SIZE, CODES = 4, 5


class Brighter(nn.Module):
    """Codes are added to a frame."""

    codebook_size: int = CODES
    predicts_images: bool = True
    cell: int = 1

    def decode(self, first_frame, codes):
        return first_frame / 255 + 0.1 * codes.sum(1)[:, None, None, None]

    def observe(self, frames):
        return 1 - frames


@pytest.mark.parametrize("of_features", [False, True])
def test_pairs_are_decoded_from_the_codes_of_the_evaluation(of_features, tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 50, (16, 2, SIZE, SIZE, 3)).astype(np.uint8)
    most = [3, 14, 5, 9, 0, 7, 12, 2]  # by how much changes
    for rank, row in enumerate(most):
        frames[row, 1] = frames[row, 0] + 200 - 10 * rank
    mask = np.ones(16, np.float32)
    mask[[1, 13]] = 0  # padding, which the arrays of the evaluation lack
    frames[[1, 13], 1] = 255
    real = np.flatnonzero(mask)
    codes = rng.integers(0, CODES, (len(real) + 20, 2))  # of further batches too
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    drawing = FramePairs(Brighter(predicts_images=not of_features), mesh)
    batches = lambda: iter([{"frames": frames, "mask": mask, "episode_id": np.zeros(16)}])  # noqa: E731
    content = drawing.compute({}, {"codes": codes}, batches)

    of_pairs = codes[np.searchsorted(real, most)]
    expected = frames[most, 0] / 255 + 0.1 * of_pairs.sum(1)[:, None, None, None]
    np.testing.assert_allclose(content["reconstructions"], expected, atol=1e-5)
    distinct, often = np.unique(codes, axis=0, return_counts=True)
    kept = min(SEQUENCES, len(distinct))
    assert content["decoded"].shape == (STARTS, kept, SIZE, SIZE, 3)
    chosen = np.array([often[(distinct == sequence).all(1)][0] for sequence in content["sequences"]])
    assert sorted(chosen) == sorted(np.sort(often)[-kept:])
    np.testing.assert_allclose(content["shares"], chosen / len(codes))
    starts = frames[most[:STARTS], 0][:, None] / 255 + 0.1 * content["sequences"].sum(1)[:, None, None, None]
    np.testing.assert_allclose(content["decoded"], starts, atol=1e-5)
    shown = frames[most] / np.float32(255)
    np.testing.assert_allclose(content["shown"], 1 - shown if of_features else shown, atol=1e-6)
    again = drawing.compute({}, {"codes": codes[::-1].copy()}, lambda: pytest.fail("the pairs stay the same"))
    np.testing.assert_array_equal(again["shown"], content["shown"])
    drawing.draw(tmp_path / "a.png", content)
    assert (tmp_path / "a.png").stat().st_size > 1000
