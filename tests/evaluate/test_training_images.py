"""What images of a training show: the held-out pairs in which most changes, decoded from their own codes."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from lapa_jax.evaluate.training_images import SEQUENCES, STARTS, FramePairs
from lapa_jax.train.sharding import make_mesh

SIZE, CODES = 4, 5


class Brighter(nn.Module):
    """Codes, or deltas, are added to a frame."""

    codebook_size: int = CODES
    discrete: bool = True
    predicts_images: bool = True
    cell: int = 1

    def decode(self, first_frame, codes):
        return first_frame / 255 + 0.1 * codes.reshape(len(codes), -1).sum(1)[:, None, None, None]

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
    chosen = np.array([often[(distinct == sequence).all(1)][0] for sequence in content["latents"]])
    assert sorted(chosen) == sorted(np.sort(often)[-kept:])
    np.testing.assert_allclose(content["shares"], chosen / len(codes))
    starts = frames[most[:STARTS], 0][:, None] / 255 + 0.1 * content["latents"].sum(1)[:, None, None, None]
    np.testing.assert_allclose(content["decoded"], starts, atol=1e-5)
    shown = frames[most] / np.float32(255)
    np.testing.assert_allclose(content["shown"], 1 - shown if of_features else shown, atol=1e-6)
    again = drawing.compute({}, {"codes": codes[::-1].copy()}, lambda: pytest.fail("the pairs stay the same"))
    np.testing.assert_array_equal(again["shown"], content["shown"])
    drawing.draw(tmp_path / "a.png", content)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_without_codes_typical_deltas_take_their_place(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 200, (16, 2, SIZE, SIZE, 3)).astype(np.uint8)
    means = np.arange(SEQUENCES)[:, None, None] * np.array([[1.0], [-1.0]])  # of as many clusters, far apart
    often = np.arange(SEQUENCES) + 3
    delta = np.repeat(means, often, axis=0) + 0.001 * rng.normal(size=(often.sum(), 2, 1))
    drawing = FramePairs(Brighter(discrete=False), make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]))
    arrays = {"delta": delta.astype(np.float32)}
    content = drawing.compute({}, arrays, lambda: iter([{"frames": frames, "mask": np.ones(16, np.float32)}]))
    np.testing.assert_allclose(content["latents"], means[::-1], atol=0.01)
    np.testing.assert_allclose(content["shares"], often[::-1] / often.sum())
    change = np.abs(frames[:, 1].astype(np.float32) - frames[:, 0]).mean((1, 2, 3))
    most = np.argsort(-change, kind="stable")[:8]
    expected = frames[most, 0] / 255 + 0.1 * delta[most].sum((1, 2))[:, None, None, None]
    np.testing.assert_allclose(content["reconstructions"], expected, atol=1e-5)
    with_bars = FramePairs(Brighter(), drawing._mesh)
    codes = rng.integers(0, CODES, (16, 2))
    images = [tmp_path / "deltas.png", tmp_path / "codes.png"]
    drawing.draw(images[0], content)
    with_bars.draw(images[1], with_bars.compute({}, {"codes": codes}, lambda: iter([
        {"frames": frames, "mask": np.ones(16, np.float32)}])))  # fmt: skip
    heights = [Image.open(image).height for image in images]
    assert heights[0] < heights[1], "no bars of codes"
