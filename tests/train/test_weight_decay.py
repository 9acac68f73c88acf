"""Weight decay is for what a parameter is, not for its number of axes; every parameter of every config is looked at."""

import jax
import jax.numpy as jnp
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.train.optim import make_optimizer
from lapa_jax.train.setup import parameter_table, prepare

# By the last part of a parameter's name. A new kind of parameter belongs into one of the two.
DECAYED = {"kernel", "maps", "lora_a", "lora_b", "embedding", "code_embedding", "codes"}
KEPT = {"bias", "scale", "query_scale", "key_scale", "attention_scale", "feedforward_scale", "null_key", "null_value",
        "codebook", "positions", "queries", "action_queries", "class_token", "mask_token", "registers",
        "kinds"}  # fmt: skip
VARIANTS = ("laq:tiny", "laq_conv:tiny", "fsq:tiny", "mae:tiny", "mstcn:tiny", "feature_vq:tiny", "icl:tiny",
            "vla_latent:tiny", "vla_latent:small", "vla_action:tiny", "vla_action:tiny+latent",
            "vla_action:tiny+chunk")  # fmt: skip


@pytest.fixture(scope="module", params=VARIANTS)
def setup(request, root):
    name, variant = request.param.split(":")
    config = config_lib.load(f"{root}/configs/{name}.py:{variant}", ["--config.optim.weight_decay=0.25"])
    if name == "vla_latent":
        config.model.lora_rank, config.model.decode = 2, "autoregressive"
    return prepare(config, devices=jax.devices()[:1])


def test_weights_decay_and_nothing_else(setup):
    # One number of each parameter is enough: its shape does not matter, which is the point.
    params = jax.tree.map(lambda leaf: jnp.ones(()), setup.abstract.variables["params"])
    config = {**setup.config.optim, "learning_rate": 1.0, "schedule": "constant", "warmup_steps": 0, "clip_norm": None}
    optimizer = make_optimizer(config, 10, params)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.transform.update)(nothing, optimizer.transform.init(params), params)
    for name, update in tree.flatten(updates).items():
        last = name.rpartition("/")[2]
        assert last in DECAYED | KEPT, f"{name}: say above whether it decays"
        expected = -0.25 if last in DECAYED else 0.0
        assert jnp.all(update == expected), name
        assert optimizer.decayed.get(name, 0.0) == -expected


def test_the_parameter_table_shows_who_decays(setup):
    lines = {line.split()[0]: line for line in parameter_table(setup).splitlines()[:-1]}
    for name in tree.flatten(setup.abstract.variables["params"]):
        assert (" decay 0.25" in lines[name]) == (name.rpartition("/")[2] in DECAYED)


def test_a_stacked_bias_has_two_axes_and_does_not_decay():
    up = {"kernel": jnp.ones((3, 2, 4)), "bias": jnp.ones((3, 4))}
    params = {"layers": {"up": up}, "norm": {"scale": jnp.ones(4)}}
    groups = ((".*norm/.*", {"weight_decay": 0.5}), (".*", {}))
    config = {"learning_rate": 1.0, "weight_decay": 0.1, "clip_norm": None, "groups": groups}
    optimizer = make_optimizer(config, 1, params)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.transform.update(nothing, optimizer.transform.init(params), params)
    moved = {name: float(update.mean()) for name, update in tree.flatten(updates).items()}
    assert moved == pytest.approx({"layers/up/kernel": -0.1, "layers/up/bias": 0.0, "norm/scale": 0.0})
    assert optimizer.decayed == {"layers/up/kernel": 0.1}
