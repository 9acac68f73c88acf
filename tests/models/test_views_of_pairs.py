"""The loss "view": deltas that do not depend on where in the image something moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import config
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.train.task import Task
from tests.models.test_few_actions import MODELS

WHITENED = {"view_shift": 4, "delta_norm": "whitened", "quant_dim": 1, "codebook_init": "data"}


TOWER = {"name": "vision.siglip", "image_size": 16, "patch": 4, "dim": 8, "depth": 1, "heads": 2, "hidden": 16}
OF_VIEWS = {**MODELS, "laq of features": {**MODELS["laq"], "patch_size": 4, "target": "features", "tower": TOWER}}


@pytest.mark.parametrize("name", OF_VIEWS)
def test_a_pair_that_looks_the_same_wherever_it_is_has_no_loss_and_others_have_one_that_moves_the_encoder(name):
    model = config.build("lapa_jax.models", {**OF_VIEWS[name], **WHITENED})
    rng = np.random.default_rng(0)
    frames = rng.random((16, 2, 16, 16, 3), np.float32)
    # Frames of one colour, which a shift leaves as they are.
    frames[:4] = rng.random((4, 2, 1, 1, 3), np.float32)
    variables = jax.jit(Task(model, {}).init)(jax.random.key(0), {"frames": frames})

    def losses(params, model=model):
        state = {key: value for key, value in variables.items() if key != "params"}
        output, _ = model.apply({"params": params, **state}, {"frames": frames}, train=True, mutable=list(state),
                                rngs={"noise": jax.random.key(1)})  # fmt: skip
        return output.losses

    both_views, pull = jax.vjp(jax.jit(lambda params: losses(params)), variables["params"])
    value = both_views["view"]
    np.testing.assert_allclose(value[:4], 0, atol=1e-6)
    assert (value[4:] > 1e-3).all()
    pull_of_view = pull({key: jnp.ones(16) if key == "view" else jnp.zeros(16) for key in both_views})[0]
    reached = {part: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(of_part))
               for part, of_part in pull_of_view.items()}  # fmt: skip
    assert reached["encoder"] > 0 and reached["decoder"] == 0

    # The shifted copy is mixed into the losses of its own pair: into those of these pairs it brings nothing new.
    one_view = config.build("lapa_jax.models", {**OF_VIEWS[name], **WHITENED, "view_shift": 0})
    for key, alone in jax.jit(lambda params: losses(params, one_view))(variables["params"]).items():
        np.testing.assert_allclose(both_views[key][:4], alone[:4], rtol=1e-4, atol=1e-6, err_msg=key)
        if key in ("reconstruction", "coarse"):
            assert (jnp.abs(both_views[key][4:] - alone[4:]) > 1e-4 * alone[4:]).all()


@pytest.mark.parametrize("name", ["laq", "laq_conv"])
def test_a_copy_that_is_not_encoded_changes_no_other_loss_and_costs_no_encoder(name):
    frames = np.random.default_rng(0).random((4, 2, 16, 16, 3), np.float32)
    models = {encoded: config.build("lapa_jax.models", {**MODELS[name], **WHITENED, "view_deltas": encoded})
              for encoded in (True, False)}  # fmt: skip
    variables = jax.jit(Task(models[True], {}).init)(jax.random.key(0), {"frames": frames})

    def losses(model):
        return jax.jit(lambda variables: model.apply(variables, {"frames": frames}, train=True, mutable=["codebook"],
                                                     rngs={"noise": jax.random.key(1)})[0].losses)  # fmt: skip

    both, pairs = (losses(model)(variables) for model in models.values())
    assert both.keys() - pairs.keys() == {"view"}
    for key, value in pairs.items():
        np.testing.assert_allclose(both[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
    flops = {encoded: losses(model).lower(variables).cost_analysis()["flops"] for encoded, model in models.items()}
    encode = jax.jit(lambda variables: models[True].apply(variables, frames, method="encode")["delta"])
    encoder = encode.lower(variables).cost_analysis()["flops"]
    # What the decoder may know of the copy, its first frame embedded, is computed in both.
    assert flops[True] - flops[False] > 0.6 * encoder


@pytest.mark.parametrize("fields", [{}, {"view_shift": 4, "view_deltas": False}])
def test_without_an_encoded_copy_there_is_no_such_loss(fields):
    model = config.build("lapa_jax.models", MODELS["laq_conv"] | fields)
    frames = np.zeros((2, 2, 16, 16, 3), np.uint8)
    variables = jax.eval_shape(Task(model, {}).init, jax.random.key(0), {"frames": frames})
    with pytest.raises(ConfigError, match="config.loss.view is 0.05, and no shifted copy is encoded: set config.mode"):
        jax.eval_shape(Task(model, {"reconstruction": 1.0, "view": 0.05}).loss, variables, {"frames": frames},
                       jax.random.key(0))  # fmt: skip


def test_many_features_are_not_whitened():
    with pytest.raises(UserError, match="'whitened' takes at most 32 features, and code_seq_len 4 times quant_dim 32"):
        config.build("lapa_jax.models", {"name": "tokenizers.laq_conv", "delta_norm": "whitened", "quant_dim": 32})
