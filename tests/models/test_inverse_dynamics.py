import jax
import numpy as np
import optax
import pytest

from lapa_jax.core import config
from lapa_jax.core.errors import UserError

SIZES = {"image_size": 16, "patch_size": 4, "dim": 16, "quant_dim": 4, "heads": 2, "dim_head": 8,
         "spatial_depth": 1, "temporal_depth": 1}  # fmt: skip


def build(**fields):
    tokenizer = {"name": "tokenizers.laq", "decoder_depth": 1, **SIZES}
    spec = {"name": "tokenizers.inverse_dynamics", "action_dim": 2, "tokenizer": tokenizer, **fields}
    return config.build("lapa_jax.models", spec)


def moving_squares(count=32):
    """A bright square that moves by up to two pixels; the action is the displacement times ten, plus 5."""
    rng = np.random.default_rng(0)
    frames, actions = np.zeros((count, 2, 16, 16, 3), np.uint8), rng.integers(-2, 3, (count, 2))
    for i, (dy, dx) in enumerate(actions):
        y, x = rng.integers(3, 9, 2)
        frames[i, 0, y : y + 4, x : x + 4] = 255
        frames[i, 1, y + dy : y + dy + 4, x + dx : x + dx + 4] = 255
    return {"frames": frames, "net_action": np.float32(actions * 10 + 5), "episode_id": np.arange(count)}


def test_it_learns_actions_that_the_frames_show():
    batch = moving_squares()
    mean, std = batch["net_action"].mean(0), batch["net_action"].std(0)
    model = build(action_mean=tuple(map(float, mean)), action_std=tuple(map(float, std)))
    variables = jax.jit(lambda key: model.init(key, batch, train=True))(jax.random.key(0))
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        loss = lambda p: model.apply({"params": p}, batch, train=True).losses["action"].mean()  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    params, state = variables["params"], optimizer.init(variables["params"])
    for _ in range(150):
        params, state, value = step(params, state)
    assert value < 0.2, "standardised actions have an error of 1 when nothing is learned"
    arrays = jax.jit(lambda p: model.apply({"params": p}, batch, method="evaluate"))(params)
    summary = model.summarize({k: np.asarray(v) for k, v in arrays.items()})
    assert summary["action_r2"] > 0.8
    assert summary["action_mse"] == pytest.approx(float(value) * float(np.mean(std**2)), rel=0.5)


@pytest.mark.parametrize(("fields", "message"), [({"action_mean": (0.0,)}, "1 values for 2"),
                                                 ({"action_std": (1.0, 0.0)}, "give more than 0")])  # fmt: skip
def test_statistics_that_cannot_be_used_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        build(**fields)
