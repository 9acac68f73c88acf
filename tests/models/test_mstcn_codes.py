"""The two codebooks against NumPy, and each error of the plan's codebooks that would come back unnoticed."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import config
from lapa_jax.core.errors import UserError
from lapa_jax.models.tokenizers.mstcn import TwoLevels
from lapa_jax.nn.quantizers import vq
from tests import jitted

CONFIG = pathlib.Path(__file__).parents[2] / "configs/mstcn.py"


def plan(**changes) -> TwoLevels:
    """The codebooks of configs/mstcn.py."""
    model = config.load(str(CONFIG)).model
    names = ("subclusters", "clusters", "decoder_input", "decay", "dead_share", "dead_age", "codebook_init")
    return TwoLevels(**{**{name: model[name] for name in names}, **changes})


def embeddings(batch=16, length=10, width=8, seed=0, kinds=200):
    """Vectors of very different lengths around `kinds` directions, of which some are far more frequent."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(kinds, width))
    share = 1 / np.arange(1, kinds + 1)
    kind = rng.choice(kinds, (batch, length), p=share / share.sum())
    x = directions[kind] + 0.1 * rng.normal(size=(batch, length, width))
    return (x * rng.exponential(size=(batch, length, 1)) * 5).astype(np.float32)


@functools.cache
def compiled(levels):
    keys = lambda rng: {"params": rng, "noise": jax.random.fold_in(rng, 1)}  # noqa: E731
    start = jax.jit(lambda rng, x, mask: levels.init(keys(rng), x, mask, train=True))
    step = jax.jit(lambda v, rng, x, mask: levels.apply(v, x, mask, train=True, mutable=["codebook"],
                                                        rngs={"noise": rng}))  # fmt: skip
    return start, step


def begin(levels, x, mask=None):
    return compiled(levels)[0](jax.random.key(0), x, np.ones(x.shape[:2], np.float32) if mask is None else mask)


def move(levels, variables, x, seed=0, mask=None):
    mask = np.ones(x.shape[:2], np.float32) if mask is None else mask
    found, updated = compiled(levels)[1](variables, jax.random.key(seed), x, mask)
    return found, {**variables, **updated}


def state(variables, level):
    return {name: np.asarray(value[0]) for name, value in variables["codebook"][level].items()}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_averages_are_of_unit_vectors_and_codes_have_length_one():
    """Spec errors 1 and 3: averages of raw embeddings would follow the longest ones; a step against NumPy."""
    levels = plan(subclusters=12, clusters=4, dead_share=0.0)
    x = embeddings()
    variables = begin(levels, x)
    found, after = move(levels, variables, x)
    codes = np.asarray(found["codes"]).reshape(-1, 2)
    inputs = {"z": unit(x).reshape(-1, 8), "q": state(variables, "z")["codes"][codes[:, 0]]}
    for place, level in enumerate(("z", "q")):
        old, new = state(variables, level), state(after, level)
        hot = np.eye(len(old["codes"]))[codes[:, place]]
        counts = 0.8 * old["counts"] + 0.2 * hot.sum(0)
        sums = 0.8 * old["sums"] + 0.2 * hot.T @ inputs[level]
        total, size = counts.sum(), len(counts)
        smoothed = (counts + vq.EPSILON) / (total + size * vq.EPSILON) * total
        assert smoothed.sum() == pytest.approx(total)
        want = np.where(hot.sum(0)[:, None] > 0, unit(sums / smoothed[:, None]), old["codes"])
        np.testing.assert_allclose(new["counts"], counts, rtol=1e-4)
        np.testing.assert_allclose(new["codes"], want, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(new["codes"], axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("level", ["z", "q"])
def test_a_replaced_code_keeps_its_value(level):
    """Spec error 2: with its sum and count left as they were it would be 0, 0.2 or 0.5 of itself a step later."""
    levels = plan(subclusters=12, clusters=4, dead_age=1)
    x = embeddings()
    variables = begin(levels, x)
    book = dict(variables["codebook"][level])
    book["counts"] = book["counts"].at[0, 3].set(1e-3)
    book["sums"] = book["sums"].at[0, 3].set(book["codes"][0, 3] * 1e-3)
    away = -jnp.mean(vq.unit(jnp.asarray(x)), (0, 1))  # where nothing is, so that no vector chooses it
    book["codes"] = book["codes"].at[0, 3].set(away / jnp.linalg.norm(away))
    book["age"] = book["age"] + 1000
    variables = {**variables, "codebook": {**variables["codebook"], level: book}}
    found, replaced = move(levels, variables, x)
    before, now = state(variables, level), state(replaced, level)
    assert float(found["metrics"][f"codes_replaced_{level}"]) >= 1 and now["age"][3] == 0
    assert before["codes"][3] @ now["codes"][3] < 0.9
    np.testing.assert_allclose(now["sums"][3], now["codes"][3] * now["counts"][3], rtol=1e-5)
    # a step in which nothing exists, and one in which everything chooses it
    _, empty = move(levels, replaced, x, mask=np.zeros((16, 10), np.float32))
    np.testing.assert_allclose(state(empty, level)["codes"][3], now["codes"][3], rtol=1e-5)
    if level == "z":
        itself = np.broadcast_to(now["codes"][3], x.shape) * 7
        _, hit = move(levels, replaced, itself.astype(np.float32))
        np.testing.assert_allclose(state(hit, level)["codes"][3], now["codes"][3], rtol=1e-4, atol=1e-5)


def test_there_is_no_storm_of_dead_codes_at_batch_16():
    """Spec error 4: 16 windows of 10 steps and 128 codes are 1.25 vectors a code; under 3 the plan replaces it."""
    levels = plan()
    variables = begin(levels, embeddings())
    replaced = {"z": [], "q": []}
    for seed in range(60):
        found, variables = move(levels, variables, embeddings(seed=seed), seed)
        for level, counts in replaced.items():
            counts.append(float(found["metrics"][f"codes_replaced_{level}"]))
    spec = [(state(variables, level)["counts"] < limit).mean() for level, limit in (("z", 3), ("q", 1))]
    assert spec[0] > 0.8, "the plan's rule would replace (nearly) all of Z at this step, as at every one"
    for level, size in (("z", 128), ("q", 32)):
        assert not any(replaced[level][:19]), "codes have at least 20 steps to be chosen"
        assert np.mean(replaced[level][19:]) < 0.06 * size, replaced


def test_codes_start_where_the_data_are():
    """Spec error 6: random codes and no pre-training leave most of them unused from the first step on."""
    x = embeddings(64, kinds=60)
    used = {}
    for start in ("data", "normal"):
        levels = plan(subclusters=64, clusters=16, codebook_init=start)
        codes = np.asarray(move(levels, begin(levels, x), x)[0]["codes"])
        used[start] = [len(np.unique(codes[..., place])) / size for place, size in ((0, 64), (1, 16))]
    assert min(used["data"]) > 0.8 > used["normal"][0], used


def test_the_first_batch_s_padding_makes_no_code():
    """Spec errors 6 and 11: k-means sees the steps that exist alone."""
    levels = plan(subclusters=12, clusters=4)
    x, mask = embeddings(), np.ones((16, 10), np.float32)
    mask[:, 5:] = 0
    junk = x.copy()
    junk[:, 5:] = 1e3
    for a, b in zip(jax.tree.leaves(begin(levels, x, mask)), jax.tree.leaves(begin(levels, junk, mask)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("decoder_input", "reads"), [("z", (True, False)), ("q", (False, True)), ("z+q", (True, True))]
)
def test_the_decoder_reads_what_it_is_told(decoder_input, reads):
    """Spec error 7: from q alone 7 numbers would be told in 5 bits; the config decodes from z."""
    assert plan().decoder_input == "z"
    levels = plan(subclusters=12, clusters=4, decoder_input=decoder_input)
    variables = begin(levels, embeddings())
    look = lambda pair: np.asarray(jitted.apply(levels, variables, np.int32([[pair]]), method="lookup"))  # noqa: E731
    changes = tuple(bool(np.abs(look(pair) - look((0, 0))).max() > 0) for pair in ((1, 0), (0, 1)))
    assert changes == reads
    z, q = state(variables, "z")["codes"][0], state(variables, "q")["codes"][0]
    want = {"z": z, "q": q, "z+q": z + q}[decoder_input] * 8**0.5
    np.testing.assert_allclose(look((0, 0))[0, 0], want, rtol=1e-5)


def test_nothing_moves_in_evaluation():
    """Spec error 11: the flag of evaluation reaches the codebooks."""
    levels = plan(subclusters=12, clusters=4)
    x = embeddings()
    variables = begin(levels, x)
    evaluate = jax.jit(lambda v, *args: levels.apply(v, *args, train=False, mutable=["codebook"]))
    _, updated = evaluate(variables, x, np.ones((16, 10), np.float32))
    for a, b in zip(jax.tree.leaves(variables["codebook"]), jax.tree.leaves(updated["codebook"]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_more_clusters_than_subclusters_are_refused():
    with pytest.raises(UserError, match="clusters 9 is more than subclusters 8"):
        TwoLevels(8, 9).check()
