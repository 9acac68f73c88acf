"""The head of cosine coefficients against scipy's transform, and the codec of the tokenizers' comparison."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.special

from lapa_jax.core.errors import UserError
from lapa_jax.data.statistics import column_statistics
from lapa_jax.evaluate.codecs.fast import Fast
from lapa_jax.models.policies.heads import dct
from tests import jitted

T, A = 6, 3


def head(**fields):
    return dct.Model(**fields).clone(action_dim=A, chunk_length=T, binary=(), dtype="float32")


def actions(rows=5, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (rows, T, A)).astype(np.float32)


def test_tokens_are_rounded_orthonormal_cosine_coefficients():
    model, chunks = head(), actions()
    expected = np.round(10 * scipy.fft.dct(chunks.astype(np.float64), axis=1, norm="ortho"))
    np.testing.assert_array_equal(model.tokens_of(jnp.asarray(chunks)), expected + 40)
    back = model.actions_of(jnp.asarray(expected + 40, jnp.int32))
    np.testing.assert_allclose(back, scipy.fft.idct(expected / 10, axis=1, norm="ortho"), atol=1e-5)
    assert np.abs(back - chunks).max() < 0.5 / 10 * T**0.5, "half a step in each of T coefficients"
    np.testing.assert_array_equal(head(limit=2).tokens_of(jnp.asarray(chunks)), np.clip(expected, -2, 2) + 2)


def test_coefficients_are_those_of_the_codec_on_normalised_chunks():
    chunks = actions(200)
    codec = Fast().fit(chunks, column_statistics([chunks.reshape(-1, A)]))
    normal = codec._normalizer.normalize(chunks)
    ours = np.asarray(head(limit=100).tokens_of(jnp.asarray(normal))) - 100
    np.testing.assert_array_equal(ours.reshape(len(chunks), -1), codec.coefficients(chunks))


def test_the_loss_is_the_cross_entropy_of_chunks_that_stay_where_they_end():
    model, chunks, rng = head(limit=4, scale=2.0), actions(), np.random.default_rng(1)
    known = np.array([6, 4, 1, 6, 3])
    weight = np.repeat(np.arange(T) < known[:, None], A, axis=1).reshape(5, T, A).astype(np.float32)
    hidden = rng.normal(size=(5, 1, 8)).astype(np.float32)
    variables = jitted.init(model, jax.random.key(0), hidden)
    logits = np.asarray(jitted.apply(model, variables, hidden), np.float64)
    held = np.stack([np.concatenate([c[:n], np.repeat(c[n - 1 : n], T - n, axis=0)]) for c, n in zip(chunks, known)])
    target = np.clip(np.round(2 * scipy.fft.dct(held, axis=1, norm="ortho")), -4, 4).astype(int) + 4
    expected = scipy.special.logsumexp(logits, -1) - np.take_along_axis(logits, target[..., None], -1)[..., 0]
    unknown = np.where(weight > 0, chunks, 9.0)
    got = jitted.apply(model, variables, hidden, None, jnp.asarray(unknown), jnp.asarray(weight), None, method="loss")
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_a_scale_that_leaves_nothing_is_refused():
    with pytest.raises(UserError, match="scale is 0.0; a number above 0"):
        dct.Model(scale=0.0).check()
