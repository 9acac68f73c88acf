"""Dilated layers against NumPy, what reaches a step and what does not, and the bound by the context."""

import jax
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.nn import tcn
from tests import jitted


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def build(stages=1, layers=3, causal=False, length=40, **fields):
    net = tcn.MultiStage(stages, layers, width=5, features=4, causal=causal, **fields)
    mask = np.ones((1, length), np.float32)
    x = numbers(1, length, 3)
    variables = jitted.init(net, {"params": jax.random.key(0)}, x, mask, train=False)
    apply = jax.jit(lambda x, mask: net.apply(variables, x, mask, train=False))
    return net, variables, apply, x, mask


def layer_by_hand(p, x, mask, dilation, causal):
    """x + conv1(relu(conv3(x))) at every step, tap by tap, in NumPy; x f[T, F]."""
    hidden = np.zeros_like(x)
    for t in range(len(x)):
        for tap in range(3):
            at = t + (tap - 2 if causal else tap - 1) * dilation
            if 0 <= at < len(x):
                hidden[t] += x[at] @ p["dilated"]["kernel"][tap]
        hidden[t] = np.maximum(hidden[t] + p["dilated"]["bias"], 0)
    return (x + hidden @ p["mix"]["kernel"][0] + p["mix"]["bias"]) * mask[:, None]


@pytest.mark.parametrize("causal", [False, True])
def test_a_stage_equals_a_convolution_by_hand(causal):
    """Spec error 11: the 1x1 convolution after the dilated one, and the mask, are there."""
    _, variables, apply, x, mask = build(layers=3, causal=causal, length=12)
    mask[0, [4, 10, 11]] = 0
    p = jax.tree.map(np.asarray, variables["params"]["stage_0"])
    p = jax.tree.map(lambda leaf: leaf + 0.1 * numbers(*leaf.shape), p)  # biases that are not 0
    net = tcn.Stage(3, 5, 4, causal)
    got = jitted.apply(net, {"params": p}, x, mask[..., None], train=False)[0]
    y = (x[0] * mask[0][:, None] @ p["inwards"]["kernel"][0] + p["inwards"]["bias"]) * mask[0][:, None]
    for index in range(3):
        y = layer_by_hand(p[f"layer_{index}"], y, mask[0], 2**index, causal)
    want = (y @ p["outwards"]["kernel"][0] + p["outwards"]["bias"]) * mask[0][:, None]
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


def influence(apply, x, mask, at):
    """The steps of the output that a change of step `at` changes."""
    changed = x.copy()
    changed[0, at] += 10
    return np.flatnonzero(np.abs(np.asarray(apply(changed, mask) - apply(x, mask)))[0].max(-1) > 0)


@pytest.mark.parametrize(("stages", "layers", "causal"), [(1, 3, False), (2, 2, False), (1, 3, True), (2, 2, True)])
def test_the_receptive_field_is_the_one_that_is_reported(stages, layers, causal):
    """Every step within the formula's reach has an influence (the field is dense), and none beyond."""
    net, variables, _, x, mask = build(stages, layers, causal, length=61)
    positive = jax.tree.map(np.abs, variables)  # so that no ReLU stays shut
    apply = jax.jit(lambda x, mask: net.apply(positive, x, mask, train=False))
    at = 30
    back, ahead = tcn.reach(layers, stages, causal=causal)
    # What `at` changes lies ahead of it as far as an output looks back, and the other way round.
    np.testing.assert_array_equal(influence(apply, x, mask, at), np.arange(at - ahead, at + back + 1))
    assert tcn.receptive_field(layers, stages) == back + ahead + 1


def test_published_receptive_fields():
    """Spec error list: 31, 255 and 2047 steps a stage for 4, 7 and 10 layers; 61, 509 and 4093 for two."""
    assert [tcn.receptive_field(n) for n in (4, 7, 10)] == [31, 255, 2047]
    assert [tcn.receptive_field(n, 2) for n in (4, 7, 10)] == [61, 509, 4093]


def test_a_causal_net_sees_nothing_of_the_future():
    """Spec error 10: a change at t' > t changes nothing at t, of the two-stage net as of one."""
    _, _, apply, x, mask = build(2, 3, True, length=20)
    for at in (1, 7, 19):
        assert influence(apply, x, mask, at).min() == at


@pytest.mark.parametrize("causal", [False, True])
def test_steps_that_do_not_exist_influence_nothing(causal):
    """Spec error 11: whatever padded steps hold, the others are the same, and the padded results are 0."""
    _, _, apply, x, mask = build(2, 3, causal, length=20)
    mask[0, 13:] = 0
    mask[0, 5] = 0
    junk = np.where(mask[..., None] > 0, x, 1e3 * numbers(*x.shape, seed=3))
    np.testing.assert_array_equal(apply(x, mask), apply(junk, mask))
    assert not np.asarray(apply(junk, mask))[0, [5, 13, 19]].any()
    alone = apply(x[:, :5], mask[:, :5])
    if causal:
        np.testing.assert_allclose(apply(x, mask)[:, :5], alone, rtol=1e-5, atol=1e-6)


def test_padding_equals_a_shorter_sequence():
    _, _, apply, x, mask = build(2, 3, length=20)
    mask[0, 13:] = 0
    np.testing.assert_allclose(apply(x, mask)[:, :13], apply(x[:, :13], mask[:, :13]), rtol=1e-5, atol=1e-6)


def test_dropout_acts_in_training_alone():
    """Spec error 11: the flag of evaluation."""
    net, variables, apply, x, mask = build(dropout=0.5)
    run = lambda seed: jitted.apply(net, variables, x, mask, train=True, rngs={"dropout": jax.random.key(seed)})  # noqa: E731
    assert np.abs(run(0) - run(1)).max() > 0
    np.testing.assert_array_equal(apply(x, mask), apply(x, mask))


def test_layers_beyond_the_context_are_refused_with_the_numbers():
    """Spec error list: 10 layers with a context of 10; 4 are the most that see anything but padding."""
    numbers = r"context of 10 .* 2047 steps a stage \(4093 over 2\).* 16 to 512 .* 4 or less"
    with pytest.raises(UserError, match=numbers):
        tcn.check_context(10, 2, 10)
    tcn.check_context(4, 2, 10)
    tcn.check_context(5, 2, 17)
    with pytest.raises(UserError, match="layers 5 to 5"):
        tcn.check_context(5, 2, 16)


@pytest.mark.parametrize("context", [2, 9, 10, 16])
def test_the_deepest_layer_that_is_allowed_still_changes_something(context):
    """The bound is exact: the last allowed layer's outer taps see real steps, those of one more never do."""
    most = (context - 1).bit_length()
    for layers, seen in ((most, True), (most + 1, False)):
        net, variables, _, _, _ = build(1, layers, length=context)
        x, mask = numbers(1, context, 3), np.ones((1, context), np.float32)
        params = jax.tree.map(np.array, variables["params"])
        # Waited for: jax may read the very memory that is written to below.
        before = np.asarray(jitted.apply(net, {"params": params}, x, mask, train=False))
        params["stage_0"][f"layer_{layers - 1}"]["dilated"]["kernel"][[0, 2]] = 7.0
        after = jitted.apply(net, {"params": params}, x, mask, train=False)
        assert (np.abs(after - before).max() > 1e-3) == seen
