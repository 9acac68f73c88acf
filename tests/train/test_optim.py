import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lapa_jax.core import tree
from lapa_jax.core.config import ConfigError
from lapa_jax.train.optim import check_gradients, make_optimizer, reset_moments

PARAMS = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "b": {"kernel": jnp.ones((3, 2))}}


def config(**changes):
    return {"learning_rate": 0.1, "clip_norm": None, "groups": ((".*", {}),), **changes}


def test_adam_equals_its_equations():
    optimizer = make_optimizer(config(b1=0.9, b2=0.99, eps=1e-8), 10, PARAMS)
    grads = [jax.tree.map(lambda p, i=i: p * (i + 1.0) - 1.5, PARAMS) for i in range(3)]
    state, got = optimizer.transform.init(PARAMS), PARAMS
    m = v = np.zeros((2, 3))
    want = np.ones((2, 3))
    for t, grad in enumerate(grads, 1):
        updates, state = optimizer.transform.update(grad, state, got)
        got = jax.tree.map(jnp.add, got, updates)
        g = np.asarray(grad["a"]["kernel"], np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        want = want - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
    np.testing.assert_allclose(got["a"]["kernel"], want, rtol=1e-5)


def test_first_match_decides_and_none_freezes():
    groups = (("a/bias", None), ("a/.*", {"learning_rate": 0.5}), (".*", {}))
    optimizer = make_optimizer(config(groups=groups), 10, PARAMS)
    trainable, frozen = tree.split(PARAMS, optimizer.trainable)
    assert list(tree.flatten(frozen)) == ["a/bias"]
    state = optimizer.transform.init(trainable)
    updates, _ = optimizer.transform.update(trainable, state, trainable)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.5, rtol=1e-5)
    np.testing.assert_allclose(updates["b"]["kernel"], -0.1, rtol=1e-5)
    slots = [leaf for leaf in jax.tree.leaves(state) if getattr(leaf, "shape", ()) == (3,)]
    assert not slots, "a frozen parameter has an optimizer slot"


def test_schedule_warms_up_and_ends_where_told():
    optimizer = make_optimizer(
        config(schedule="cosine", warmup_steps=4, final_learning_rate=0.01), 104, PARAMS)  # fmt: skip
    rates = [float(optimizer.learning_rate(step)) for step in (0, 3, 53, 103, 104)]
    np.testing.assert_allclose(rates[:2], [0.025, 0.1], rtol=1e-5)
    want = 0.01 + 0.09 * 0.5 * (1 + np.cos(np.pi * 50 / 100))
    np.testing.assert_allclose(rates[2], want, rtol=1e-3)
    np.testing.assert_allclose(rates[4], 0.01, rtol=2e-2)


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_step_decay_multiplies_the_rate_after_each_boundary(warmup):
    """The first update has the number 0: after 5 of them, the one with the number 5 is the first with a lower rate."""
    decay = config(schedule="step_decay", boundaries=(5, 8), decay_factor=0.5, warmup_steps=warmup)
    optimizer = make_optimizer(decay, 10, PARAMS)
    rates = [float(optimizer.learning_rate(step)) for step in range(warmup, 11)]
    expected = [0.1 * 0.5 ** ((step >= 5) + (step >= 8)) for step in range(warmup, 11)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    late = make_optimizer({**decay, "groups": ((".*", {"start_step": 100}),)}, 110, PARAMS)
    assert [float(late.learning_rate(100 + step)) for step in range(warmup, 11)] == rates


def test_groups_tell_what_becomes_of_how_much():
    groups = (("a/bias", None), ("a/.*", {"learning_rate": 0.5}), (".*", {}))
    lines = [str(group) for group in make_optimizer(config(groups=groups), 10, PARAMS).groups]
    assert lines == [
        "'a/bias': frozen: 1 parameters, 3 numbers (a)",
        "'a/.*': learning rate 0.5: 1 parameters, 6 numbers (a)",
        "'.*': learning rate 0.1: 1 parameters, 6 numbers (b)",
    ]


def test_clip_norm_is_global():
    optimizer = make_optimizer(config(clip_norm=0.5), 10, PARAMS)
    grads = jax.tree.map(lambda p: p * 100.0, PARAMS)
    state = optimizer.transform.init(PARAMS)
    _, state = optimizer.transform.update(grads, state, PARAMS)
    moments = optax.tree.get(state, "mu")
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(moments))) / 0.1
    np.testing.assert_allclose(norm, 0.5, rtol=1e-4)


def test_reset_zeroes_exactly_the_masked_moments():
    optimizer = make_optimizer(config(), 10, PARAMS)
    state = optimizer.transform.init(PARAMS)
    _, state = optimizer.transform.update(PARAMS, state, PARAMS)
    after = reset_moments(state, {"a/kernel": jnp.array([[True], [False]])})
    before, after = (jax.tree.leaves(s) for s in (state, after))
    changed = [(x, y) for x, y in zip(before, after, strict=True) if not np.array_equal(x, y)]
    assert len(changed) == 2, "both moments of a/kernel and nothing else"
    for x, y in changed:
        assert x.shape == (2, 3) and not y[0].any() and np.array_equal(x[1], y[1])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"groups": (("a/.*", {}),)}, "'b/kernel' matches no expression"),
        ({"groups": ((".*", None),)}, "freezes every parameter"),
        ({"groups": (("c/.*", None), (".*", {}))}, "'c/.*' matches no parameter; names begin with a, b"),
        ({"groups": (("a/kernl", None), (".*", {}))}, "'a/kernl' matches no parameter; did you mean 'a/kernel'"),
        ({"groups": ((".*/kernel", {}), ("a/kernel", None), (".*", {}))}, "'a/kernel' decides for no parameter"),
        ({"groups": (("(a/.*", None), (".*", {}))}, "'(a/.*' is no regular expression"),
        ({"schedule": "step_decay"}, "boundaries is ()"),
        ({"schedule": "step_decay", "boundaries": (5, 3), "decay_factor": 0.1}, "needs ascending steps"),
        ({"schedule": "step_decay", "boundaries": (3,), "warmup_steps": 4, "decay_factor": 0.1}, "after the warm-up"),
        ({"schedule": "step_decay", "boundaries": (5,), "decay_factor": 1.5}, "decay_factor is 1.5"),
        ({"learnin_rate": 1.0}, "did you mean 'learning_rate'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(ConfigError) as error:
        make_optimizer(config(**changes), 10, PARAMS)
    assert words in str(error.value)


def test_training_what_no_loss_reaches_is_refused():
    train_all = make_optimizer(config(), 10, PARAMS)
    freeze_a = make_optimizer(config(groups=(("a/.*", None), (".*", {}))), 10, PARAMS)
    check_gradients(train_all, PARAMS, ())
    check_gradients(freeze_a, PARAMS, ("a/.*",))
    words = r"trains 2 parameters that no loss reaches \(a/.*in front, \('a/\.\*', None\)"
    with pytest.raises(ConfigError, match=words):
        check_gradients(train_all, PARAMS, ("b/other", "a/.*"))
