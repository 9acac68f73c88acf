"""The small tower: what it computes, step by step in NumPy; what it hears of the instruction; what it refuses."""

import jax
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from lapa_jax.models.vision.film_conv import Model
from tests import jitted

ROWS, SIDE, LENGTH, WIDTH = 3, 12, 5, 7
SIZES = {"widths": (4, 6), "condition": 8, "tokens": 3, "dim": 5}
MODEL = Model(**SIZES)
POINTS = Model(**SIZES, strides=(2, 1), points=2)


def inputs(side=SIDE):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (ROWS, side, side, 3)).astype(np.uint8)
    real = (np.arange(LENGTH) < np.array([5, 3, 1])[:, None]).astype(np.float32)
    return images, rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32), real


def made(model):
    rng = np.random.default_rng(1)
    initial = jitted.init(model, jax.random.key(0), *inputs())
    return jax.tree.map(lambda a: a + 0.1 * rng.normal(size=a.shape).astype(np.float32), initial)


@pytest.fixture(scope="module")
def variables():
    return made(MODEL)


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def conv(x, p, stride):
    """A 3x3 convolution that pads at the far edges, and at the near ones too where its stride is 1, by its sums."""
    rows, side, near = len(x), x.shape[1] // stride, 2 - stride
    x, kernel = np.pad(x, ((0, 0), (near, 1), (near, 1), (0, 0))), p["kernel"]
    out = np.zeros((rows, side, side, kernel.shape[-1]))
    for i in range(side):
        for j in range(side):
            window = x[:, stride * i : stride * i + 3, stride * j : stride * j + 3]
            out[:, i, j] = np.einsum("nabc,abcd->nd", window, kernel)
    return out + p["bias"]


def expected_places(logits):
    """[N, side, side, P] -> [N, 2 P], place by place."""
    side, places = logits.shape[1], []
    for maps in logits:
        for point in np.moveaxis(maps, -1, 0):
            weights = np.exp(point) / np.exp(point).sum()
            where = [2 * k / (side - 1) - 1 for k in range(side)]
            places += [sum(weights[i].sum() * where[i] for i in range(side)),
                       sum(weights[:, j].sum() * where[j] for j in range(side))]  # fmt: skip
    return np.reshape(places, (len(logits), -1))


@pytest.mark.parametrize(("model", "side"), [(MODEL, SIDE), (POINTS, SIDE), (POINTS, 16)])
def test_it_computes_what_the_papers_say(model, side):
    """Points are read off pictures of another size than the parameters were made for, too."""
    variables = made(model)
    images, words, real = inputs(side)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    linear = lambda x, name: x @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    heard = np.maximum(linear((norm(words, p["norm_words"]) * real[..., None]).reshape(ROWS, -1), "words"), 0)
    x = images / 127.5 - 1
    for i in range(2):
        factors = heard @ p[f"film_{i}"]["factors"]["kernel"] + p[f"film_{i}"]["factors"]["bias"]
        scale, shift = np.split(factors[:, None, None], 2, axis=-1)
        x = norm(conv(x, p[f"conv_{i}"], (model.strides or (2, 2))[i]), p[f"norm_{i}"])
        x = np.maximum(x * (1 + scale) + shift, 0)
    x = expected_places(linear(x, "points")) if model.points else x.reshape(ROWS, -1)
    expected = linear(x, "read_off").reshape(ROWS, 3, 5)
    np.testing.assert_allclose(jitted.apply(model, variables, images, words, real), expected, rtol=1e-4, atol=1e-4)


def test_it_hears_words_in_their_order_and_no_padding(variables):
    images, words, real = inputs()
    found = np.asarray(jitted.apply(MODEL, variables, images, words, real))
    changed = np.where(real[..., None] > 0, words, 9.0 * words[::-1])
    np.testing.assert_array_equal(jitted.apply(MODEL, variables, images, changed, real), found)
    other = np.asarray(jitted.apply(MODEL, variables, images, words[:, ::-1], np.ones_like(real)))
    same = np.asarray(jitted.apply(MODEL, variables, images, words, np.ones_like(real)))
    assert np.abs(other - same).max() > 1e-3


def test_views_and_kinds_of_pictures(variables):
    images, words, real = inputs()
    both = np.stack([images, images[::-1]], axis=1)
    found = np.asarray(jitted.apply(MODEL, variables, both, words, real))
    assert found.shape == (ROWS, 2, 3, 5)
    for view in range(2):
        one = jitted.apply(MODEL, variables, both[:, view], words, real)
        np.testing.assert_allclose(found[:, view], one, atol=1e-5)
    as_floats = jitted.apply(MODEL, variables, both.astype(np.float32) / 255, words, real)
    np.testing.assert_allclose(as_floats, found, atol=1e-5)


def test_in_bfloat16_all_but_parameters_are_short(variables):
    short = Model(widths=(4, 6), condition=8, tokens=3, dim=5, dtype="bfloat16")
    out = jitted.apply(short, variables, *inputs())
    assert out.dtype == "bfloat16"
    np.testing.assert_allclose(np.asarray(out, np.float32), jitted.apply(MODEL, variables, *inputs()), atol=0.15)
    made = jax.eval_shape(short.init, jax.random.key(0), *inputs())
    assert {leaf.dtype.name for leaf in jax.tree.leaves(made)} == {"float32"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": ()}, "at least one convolution"),
        ({"widths": (8, 0)}, r"widths\[1\] is 0"),
        ({"strides": (2, 1)}, r"strides is \(2, 1\) for widths \(24, 48, 64\)"),
        ({"points": -1}, "points is -1"),
        ({"tokens": 0}, "tokens is 0"),
        ({"dim": 2.5}, "dim is 2.5"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
    ],
)
def test_fields_that_cannot_work_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        config_lib.check(Model(**change))
