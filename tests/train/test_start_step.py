"""Groups of parameters whose updates begin later than the run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lapa_jax.core.config import ConfigError
from lapa_jax.train.checkpoint import load_for_inference
from lapa_jax.train.loop import train
from lapa_jax.train.optim import make_optimizer, reset_moments
from lapa_jax.train.setup import parameter_table, prepare
from tests import toys
from tests.data.samples import make

pytestmark = pytest.mark.usefixtures("one_device")

PARAMS = {"tokenizer": {"kernel": jnp.full((2, 3), 0.5), "bias": jnp.ones(3)}, "head": {"kernel": jnp.ones((3, 2))}}
START, STEPS = 3, 9
COMMON = {"learning_rate": 0.1, "schedule": "cosine", "warmup_steps": 2, "final_learning_rate": 0.01,
          "weight_decay": 0.2, "clip_norm": 0.7}  # fmt: skip
LATE = (("tokenizer/.*", {}), (".*", {"start_step": START}))


def gradients(step: int, params):
    """Some gradients that depend on the parameters, large enough to be clipped."""
    return jax.tree.map(lambda p: p * (step + 1.0) - 1.5, params)


def run(config, params, steps):
    """Parameters, and the state, after each of `steps` steps."""
    optimizer = make_optimizer(config, STEPS, params)
    state, found = optimizer.transform.init(params), []
    for step in range(steps):
        grads = gradients(step, params)
        updates, state = jax.jit(optimizer.transform.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append((params, state))
    return found


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7), a, b)


def test_before_its_start_a_group_is_not_there():
    late = run({**COMMON, "groups": LATE}, PARAMS, START)
    alone = run({**COMMON, "groups": ((".*", {}),)}, {"tokenizer": PARAMS["tokenizer"]}, START)
    for (params, state), (expected, _) in zip(late, alone, strict=True):
        assert np.array_equal(params["head"]["kernel"], PARAMS["head"]["kernel"]), "also no weight decay"
        assert_close(params["tokenizer"], expected["tokenizer"])
        moments = [m for m in jax.tree.leaves(state) if m.shape == (3, 2)]
        assert len(moments) == 2 and not any(m.any() for m in moments)


def test_from_its_start_on_it_is_trained_as_by_optax_from_scratch():
    """With the cosine over what remains of the run, counted from its first update."""
    config = {**COMMON, "clip_norm": None, "groups": LATE}
    late = run(config, PARAMS, STEPS)
    cosine = optax.cosine_decay_schedule(0.1, STEPS - START - 2, 0.1)
    rate = optax.join_schedules([optax.linear_schedule(0.05, 0.1, 1), cosine], [1])
    plain = optax.adamw(rate, weight_decay=0.2)
    params = {"head": PARAMS["head"]}
    state = plain.init(params)
    for step in range(START, STEPS):
        updates, state = plain.update(gradients(step, params), state, params)
        params = optax.apply_updates(params, updates)
        assert_close(late[step][0]["head"], params["head"])
    assert not np.allclose(late[-1][0]["head"]["kernel"], 1.0)


def test_clipping_counts_the_group_from_its_start_on():
    late = run({**COMMON, "groups": LATE}, PARAMS, START + 1)
    before, after = late[START - 1][0], late[START][0]
    grads = gradients(START, before)
    clip = min(1.0, 0.7 / float(optax.tree.norm(grads)))
    state = late[START][1]
    first_moment = next(m for m in jax.tree.leaves(state) if m.shape == (3, 2))
    np.testing.assert_allclose(first_moment, 0.1 * clip * grads["head"]["kernel"], rtol=1e-5)
    assert not np.array_equal(after["head"]["kernel"], before["head"]["kernel"])


def test_the_logged_rate_and_replaced_codes_know_of_it():
    optimizer = make_optimizer({**COMMON, "groups": ((".*", {"start_step": START}),)}, STEPS, PARAMS)
    rates = [float(optimizer.learning_rate(step)) for step in range(STEPS + 1)]
    np.testing.assert_allclose(rates[:5], [0, 0, 0, 0.05, 0.1], rtol=1e-6)
    np.testing.assert_allclose(rates[-1], 0.01, rtol=1e-5)
    _, state = run({**COMMON, "groups": LATE}, PARAMS, START + 1)[-1]
    cleared = reset_moments(state, {"head/kernel": jnp.ones((3, 1), bool)})
    assert not any(m.any() for m in jax.tree.leaves(cleared) if m.shape == (3, 2))


@pytest.mark.parametrize("value", [-1, 2.5, True, "3"])
def test_what_is_no_step_is_refused(value):
    with pytest.raises(ConfigError, match="start_step is .*; give a number of steps"):
        make_optimizer({**COMMON, "groups": ((".*", {"start_step": value}),)}, STEPS, PARAMS)


@pytest.mark.parametrize("stop", [2, 4])
def test_a_run_resumes_exactly_before_and_after_the_start(tmp_path, monkeypatch, stop):
    toys.use(monkeypatch)
    data = make.write(tmp_path / "arm", toys.LENGTHS, cameras=())

    def config(**more):
        found = toys.config("chunks", data, save_every=1, **more)
        with found.unlocked():
            found.optim.groups = (("encoder/.*", {}), (".*", {"start_step": START, "weight_decay": 0.1}))
            found.optim.clip_norm = 0.5
        return found

    train(config(), tmp_path / "whole")
    train(config(steps=stop), tmp_path / "cut")
    early = load_for_inference(tmp_path / "cut").variables["params"]
    train(config(), tmp_path / "cut")
    a, b = (load_for_inference(tmp_path / name).variables for name in ("whole", "cut"))
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))
    assert np.array_equal(early["decoder"]["bias"], np.zeros(12)) == (stop < START)
    log = (tmp_path / "cut/log.txt").read_text()
    assert "updates of 2 parameters begin after step 3" in log
    assert ("step 3, and this run ends with step 2" in log) == (stop < START)
    table = parameter_table(prepare(config()))
    assert table.count(" after step 3") == 2 and "frozen" not in table
