"""Padded codebooks side by side do what each of them would do alone as `nn.quantizers.vq.VQ`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.models.tokenizers.feature_vq.codebooks import Codebooks, masked_kmeans, nearest
from lapa_jax.nn.quantizers.vq import VQ

SIZES, DIMS = (5, 3, 7), (4, 2, 3)


def books(**fields):
    return Codebooks(SIZES, DIMS, **{"decay": 0.9, "dead_share": 0.0, "dead_age": 1, **fields})


def vectors(count=40, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, 3, max(DIMS))).astype(np.float32)
    return x * (np.arange(max(DIMS)) < np.array(DIMS)[:, None])


def init(module, x):
    keys = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    return jax.jit(lambda x: module.init(keys, x, train=True))(x)


@functools.cache
def jitted(module):
    return jax.jit(lambda variables, x, key: module.apply(
        variables, x, train=True, mutable=["codebook"], rngs={"noise": jax.random.key(key)}
    ))  # fmt: skip


def apply(module, variables, x, key=0):
    output, updated = jitted(module)(variables, x, key)
    return output, {"codebook": updated["codebook"]}


def alone(variables, i):
    """The variables of codebook i as a VQ has them."""
    state = variables["codebook"]
    return {"codebook": {
        "codes": state["codes"][i : i + 1, : SIZES[i], : DIMS[i]], "counts": state["counts"][i : i + 1, : SIZES[i]],
        "sums": state["sums"][i : i + 1, : SIZES[i], : DIMS[i]], "age": state["age"][i : i + 1, : SIZES[i]],
    }}  # fmt: skip


@pytest.mark.parametrize("steps", [1, 3])
def test_each_codebook_behaves_like_a_vq_of_its_own(steps):
    module = books()
    variables = init(module, vectors())
    singles = [alone(variables, i) for i in range(3)]
    for number in range(steps):
        x = vectors(seed=number + 1)
        (quantized, codes, commitment, metrics), variables = apply(module, variables, x)
        used, entropy = 0, []
        for i, (size, dim) in enumerate(zip(SIZES, DIMS)):
            own = VQ(size, decay=0.9)
            (theirs, their_codes, losses, shown), singles[i] = apply(own, singles[i], x[:, i : i + 1, :dim])
            np.testing.assert_array_equal(codes[:, i], their_codes[:, 0])
            np.testing.assert_allclose(quantized[:, i, :dim], theirs[:, 0], rtol=1e-5)
            np.testing.assert_allclose(commitment[:, i], losses["commitment"], rtol=1e-4)
            used, entropy = used + shown["codebook_utilization"] * size, [*entropy, shown["perplexity"]]
            for name, value in alone(variables, i)["codebook"].items():
                np.testing.assert_allclose(value, singles[i]["codebook"][name], rtol=1e-4, atol=1e-5, err_msg=name)
        assert float(metrics["codebook_utilization"]) == pytest.approx(float(used) / sum(SIZES), rel=1e-5)
        assert float(metrics["perplexity"]) == pytest.approx(float(np.mean(entropy)), rel=1e-5)


def test_padding_stays_zero_and_no_code_is_from_there():
    module = books(dead_share=0.9, dead_age=1)
    variables, replaced = init(module, vectors()), 0.0
    for number in range(4):
        (quantized, codes, _, metrics), variables = apply(module, variables, vectors(seed=number), key=number)
        assert np.all(np.asarray(codes).max(0) < np.array(SIZES))
        assert not np.any(quantized * (np.arange(4) >= np.array(DIMS)[:, None]))
        replaced += float(metrics["codes_replaced"])
    assert replaced > 0
    state = {name: np.asarray(value) for name, value in variables["codebook"].items()}
    for i, (size, dim) in enumerate(zip(SIZES, DIMS)):
        for name in ("codes", "sums"):
            assert not state[name][i, size:].any() and not state[name][i, :, dim:].any(), name
        assert not state["counts"][i, size:].any()
        assert np.abs(state["codes"][i, :size, :dim]).sum(-1).min() > 0


def test_a_code_that_nothing_chooses_keeps_its_value():
    """Error (c) of the reference: counts start at 0, and an unused code is 2,000 times as long one step later."""
    module = books()
    variables = init(module, vectors())
    far = {**variables["codebook"]}
    far["codes"] = far["codes"].at[0, 2, :4].set(50.0)
    far["sums"] = far["codes"] * far["counts"][..., None]
    variables = {"codebook": far}
    for number in range(5):
        _, variables = apply(module, variables, vectors(seed=number))
    np.testing.assert_array_equal(variables["codebook"]["codes"][0, 2], 50.0)
    others = np.delete(np.asarray(variables["codebook"]["codes"]), 2, axis=1)
    assert np.linalg.norm(others, axis=-1).max() < 5


def with_a_dead_code(module):
    variables = init(module, vectors())
    codes = variables["codebook"]["codes"].at[1, 1, :2].set(1e3)
    state = {**variables["codebook"], "codes": codes}
    return {"codebook": {**state, "sums": codes * state["counts"][..., None]}}


def test_a_dead_code_is_replaced_after_so_many_steps():
    """Error (d) of the reference: the interval is counted in epochs, of which there are never so many."""
    module = books(dead_share=0.3, dead_age=20)
    variables, replaced = with_a_dead_code(module), []
    for number in range(25):
        (_, _, _, metrics), variables = apply(module, variables, vectors(seed=number), key=number)
        replaced.append(float(metrics["codes_replaced"]))
    assert replaced[:19] == [0] * 19 and replaced[19] >= 1
    state = variables["codebook"]
    assert np.abs(state["codes"][1, 1]).max() < 5, "it is a vector of the batch now"
    assert int(state["age"][1, 1]) == 5
    assert float(state["counts"][1, 1]) > 1, "and is in use"


def test_a_larger_share_replaces_more():
    """Error (e) of the reference: the threshold is a percentile, and its manual says the opposite of what it does."""
    found = []
    for share in (0.05, 0.5, 0.95):
        module = books(dead_share=share, dead_age=1)
        _, variables = apply(books(), init(module, vectors()), vectors(seed=1))
        (_, _, _, metrics), _ = apply(module, variables, vectors(seed=2))
        found.append(float(metrics["codes_replaced"]))
    assert found == sorted(found) and found[0] < found[-1]


def test_dead_means_a_share_of_the_mean_over_the_codes_there_are():
    """Three codes padded to seven: a count just over a tenth of the mean of three is alive, just under is dead."""
    for share, expected in ((1.1, 0), (0.9, 1)):
        module = books(dead_share=0.1, dead_age=1, decay=0.999999)
        variables = init(module, vectors())
        state = {**variables["codebook"]}
        counts = state["counts"].at[1, :3].set(jnp.array([19.5, 19.5, 0.1 * share * 40 / 3]))
        state = {**state, "counts": counts, "sums": state["codes"] * counts[..., None]}
        (_, _, _, metrics), after = apply(module, {"codebook": state}, vectors(seed=3))
        assert float(metrics["codes_replaced"]) == expected
        if expected:
            assert float(after["codebook"]["counts"][1, 2]) == pytest.approx(40 / 3, rel=0.05)
            length = after["codebook"]["sums"][1, 2] / after["codebook"]["counts"][1, 2]
            np.testing.assert_allclose(length, after["codebook"]["codes"][1, 2], rtol=1e-4)


def test_codes_start_at_centres_of_the_data():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(1, 6, 2)) * 10
    x = np.repeat(centres, 50, axis=1) + 0.01 * rng.normal(size=(1, 300, 2))
    real, inside = np.arange(8)[None] < 6, np.ones((1, 1, 2), bool)
    errors = []
    for seed in range(5):
        found = np.asarray(masked_kmeans(jax.random.key(seed), jnp.asarray(x, jnp.float32), real, inside))[0]
        assert not found[6:].any()
        errors.append(np.mean(np.min(np.linalg.norm(x[0, :, None] - found[None, :6], axis=-1), axis=1)))
    assert np.median(errors) < 0.3 * x.std()
    few = masked_kmeans(jax.random.key(0), jnp.asarray(x[:, :3], jnp.float32), real, inside)[0, :6]
    assert len(np.unique(np.asarray(few), axis=0)) == 6, "fewer vectors than codes: all differ"


@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0.0), (1.0, 1e4), (1e6, 0.0)])
def test_nearest_codes_are_those_of_float64_at_any_scale(scale, offset):
    x = (vectors(60, seed=1) + offset) * np.float32(scale)
    codes = (vectors(7, seed=2) + offset) * np.float32(scale)
    x, codes, real = x.swapaxes(0, 1), codes.swapaxes(0, 1), np.arange(7) < np.array(SIZES)[:, None]
    exact = np.square(x[:, :, None].astype(np.float64) - codes[:, None]).sum(-1)
    exact = np.where(real[:, None], exact, np.inf)
    found = np.asarray(nearest(jnp.asarray(x), jnp.asarray(codes), real))
    chosen = np.take_along_axis(exact, found[..., None], 2)[..., 0]
    np.testing.assert_allclose(chosen, exact.min(2), rtol=1e-5)
