import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.nn.quantizers import nsvq
from lapa_jax.nn.quantizers.nsvq import NSVQ
from tests import jitted


def start(x, size=5, **fields):
    module = NSVQ(size, **fields)
    return module, jitted.init(module, {"params": jax.random.key(0), "noise": jax.random.key(1)}, x, train=True)


def vectors(*shape, seed=0):
    return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def test_nearest_code_equals_a_search_over_all_distances():
    x, codebook = vectors(6, 3, 4), vectors(5, 4, seed=1)
    distance = np.linalg.norm(np.asarray(x)[:, :, None] - np.asarray(codebook), axis=-1)
    np.testing.assert_array_equal(nsvq.nearest_code(x, codebook), distance.argmin(-1))


def test_substituted_noise_has_the_length_of_the_error_and_its_own_direction():
    x, code, noise = (np.asarray(vectors(7, 4, seed=i)) for i in range(3))
    got = np.asarray(nsvq.substitute_noise(x, code, noise))
    length = lambda y: np.linalg.norm(y, axis=-1, keepdims=True)  # noqa: E731
    expected = x + length(x - code) * noise / length(noise)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_training_returns_noise_and_evaluation_the_codes_themselves():
    x = vectors(2, 3, 4)
    module, variables = start(x)
    quantised, codes, _ = jitted.apply(module, variables, x, train=False)
    np.testing.assert_array_equal(quantised, variables["params"]["codebook"][codes])
    noisy, same_codes, _ = _train(module, variables, x)[0]
    np.testing.assert_array_equal(codes, same_codes)
    np.testing.assert_allclose(np.linalg.norm(noisy - x, axis=-1), np.linalg.norm(quantised - x, axis=-1), rtol=1e-4)
    assert np.abs(noisy - quantised).max() > 1e-3


def test_gradients_reach_the_input_and_only_the_selected_codes():
    x = vectors(2, 1, 4)
    module, variables = start(x, size=6)
    codes = jitted.apply(module, variables, x, train=False)[1]

    def loss(params, x):
        out = module.apply({**variables, "params": params}, x, train=True, mutable=["codebook"],
                           rngs={"noise": jax.random.key(3)})  # fmt: skip
        return jnp.sum(out[0][0] ** 2)

    codebook_grad, x_grad = jax.jit(jax.grad(loss, (0, 1)))(variables["params"], x)
    moved = np.abs(codebook_grad["codebook"]).max(-1) > 0
    np.testing.assert_array_equal(moved, np.isin(np.arange(6), codes))
    assert np.all(np.abs(x_grad).max(-1) > 0)


def test_gradient_at_zero_error_is_finite():
    code = vectors(3, 4)
    grad = jax.grad(lambda x: jnp.sum(nsvq.substitute_noise(x, code, vectors(3, 4, seed=2))))(code)
    np.testing.assert_allclose(grad, 1.0)
    assert jax.grad(lambda x: nsvq.safe_norm(x).sum())(jnp.zeros(3)).tolist() == [0, 0, 0]


def test_hits_count_passes_and_tokens_count_vectors():
    x = vectors(4, 2, 3)
    module, variables = start(x, size=8)
    codes = np.asarray(jitted.apply(module, variables, x, train=False)[1])
    for _ in range(3):
        _, updated = _train(module, variables, x)
        variables = {**variables, **updated}
    counts = np.bincount(codes.reshape(-1), minlength=8)
    np.testing.assert_array_equal(variables["codebook"]["tokens"], 3 * counts)
    np.testing.assert_array_equal(variables["codebook"]["hits"], 3 * (counts > 0))


def test_candidates_are_the_vectors_farthest_from_their_codes():
    x = vectors(4, 2, 3)
    module, variables = start(x, size=3)
    quantised, _, _ = jitted.apply(module, variables, x, train=False)
    rows = np.asarray(x).reshape(-1, 3)
    far = np.argsort(-np.linalg.norm(rows - np.asarray(quantised).reshape(-1, 3), axis=-1))[:3]
    _, updated = _train(module, variables, x)
    np.testing.assert_allclose(updated["codebook"]["candidates"], rows[far])


def test_counting_needs_a_mutable_collection():
    x = vectors(2, 1, 3)
    module, variables = start(x)
    with pytest.raises(Exception, match="hits"):
        jitted.apply(module, variables, x, train=True, rngs={"noise": jax.random.key(0)})


def test_arithmetic_is_float32_whatever_comes_in():
    x = vectors(2, 3, 4).astype(jnp.bfloat16)
    module, variables = start(x)
    quantised, codes, metrics = jitted.apply(module, variables, x, train=False)
    assert quantised.dtype == jnp.float32 and codes.dtype == jnp.int32
    assert {m.dtype for m in metrics.values()} == {jnp.dtype("float32")}


def test_data_initialisation_finds_separate_clusters():
    centres = np.float32([[0, 0], [9, 0], [0, 9], [9, 9]])
    x = jnp.asarray(np.repeat(centres, 10, axis=0) + 0.1 * np.asarray(vectors(40, 2)))
    _, variables = start(x[:, None], size=4, codebook_init="data")
    found = np.asarray(variables["params"]["codebook"])
    for centre in centres:
        assert np.linalg.norm(found - centre, axis=-1).min() < 0.5


def test_data_initialisation_takes_fewer_vectors_than_codes():
    found = nsvq.kmeans(jax.random.key(0), vectors(3, 4), 8)
    assert found.shape == (8, 4) and len(np.unique(found, axis=0)) == 8


def _train(module, variables, x):
    return jitted.apply(module, variables, x, train=True, mutable=["codebook"], rngs={"noise": jax.random.key(2)})
