"""Models that compute in bfloat16 neither read nor write their numbers on its grid, whose steps are 0.004 near 1."""

import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.models import llama
from lapa_jax.models.policies.heads import bins as bins_head
from lapa_jax.models.policies.heads import chunk, dct, flow, latent
from lapa_jax.models.policies.heads.base import Context
from lapa_jax.models.policies.icl_tokens import StateEncoder
from lapa_jax.models.tokenizers import laq_conv
from lapa_jax.models.tokenizers.fsq import Resampler
from lapa_jax.models.tokenizers.laq.modules import FrameDecoder, PairEncoder
from lapa_jax.nn.tcn import MultiStage
from tests import jitted

HALF = jnp.bfloat16
FILLED = {"action_dim": 3, "chunk_length": 2, "dtype": "bfloat16"}


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def made_and_called(module: nn.Module, *args, **kwargs):
    return jax.jit(lambda args: module.init_with_output(jax.random.key(0), *args, **kwargs)[0])(args)


def policy(name: str, **fields):
    """A small policy in bfloat16, and a batch."""
    common = {"dtype": "bfloat16", "image_size": 8, "cameras": 1, "text_length": 3}
    llm = {"name": "llama", "vocab": 20, "dim": 16, "depth": 1, "heads": 2, "hidden": 16, "head": "none",
           "dtype": "bfloat16"}  # fmt: skip
    vision = {"name": "vision.film_conv", "widths": (4,), "condition": 4, "tokens": 2, "dim": 8, "dtype": "bfloat16"}
    model = config_lib.build("lapa_jax.models", {"name": name, "vision": vision, "llm": llm, **common, **fields})
    return model, {field: jnp.asarray(value) for field, value in model.example(4).items()}


def latent_logits(decode):
    model, batch = policy("policies.vla", code_length=2, codebook_size=4, decode=decode)
    batch = {**batch, "image": jnp.asarray(np.random.default_rng(0).integers(0, 255, batch["image"].shape), jnp.uint8)}
    return made_and_called(model, batch, method="predict")["logits"]


def pair_encoder(pooling):
    encoder = PairEncoder(16, 4, 32, 8, 4, 1, 1, 2, 16, "fixed", pooling, "bfloat16", "none")
    frames = normal(3, 2, 16, 16, 3)
    return made_and_called(encoder, frames, method=lambda m, x: m.delta(m.mix(m.embed(x), m.bias())))


def logits(head):
    model = llama.Model(50, 16, 1, 2, 16, head=head, dtype="bfloat16")
    return made_and_called(model, jnp.arange(20).reshape(2, 10), method=lambda m, tokens: m.logits(m(tokens)))


def latent_head(context):
    head = latent.Model(width=16, heads=2, context=context, action_dim=3, chunk_length=4, dtype="bfloat16")
    return made_and_called(head, nn.softmax(normal(5, 4, 8)), Context(normal(5, 6, 16), jnp.ones((5, 6), bool)))


def flow_velocity():
    head = flow.Model(width=16, heads=2, depth=1, action_dim=3, chunk_length=4, dtype="bfloat16")
    seen = Context(normal(5, 6, 16), jnp.ones((5, 6), bool))
    return made_and_called(head, normal(5, 4, 16), seen, normal(5, 4, 3), jnp.linspace(0.1, 1, 5))


WRITTEN = {
    "bins": lambda: made_and_called(bins_head.Model(bins=16, binary=(), **FILLED), normal(4, 1, 32)),
    "chunk": lambda: made_and_called(chunk.Model(width=32, **FILLED), normal(8, 2, 32)),
    "dct": lambda: made_and_called(dct.Model(limit=8, binary=(), **FILLED), normal(4, 1, 32)),
    "flow": flow_velocity,
    "latent": lambda: latent_head(True),
    "latent without context": lambda: latent_head(False),
    "llama": lambda: logits("own"),
    "llama, tied": lambda: logits("tied"),
    "codes, parallel": lambda: latent_logits("parallel"),
    "codes, autoregressive": lambda: latent_logits("autoregressive"),
    "laq, deltas by convolutions": lambda: pair_encoder("conv"),
    "laq, deltas by maps": lambda: pair_encoder("maps"),
    "laq, pixels": lambda: made_and_called(
        FrameDecoder((2, 2), 4, 32, 1, 2, 16, "fixed", 1.0, "bfloat16", "none"),
        normal(3, 4, 32), normal(3, 4, 8), jnp.zeros((2, 4, 4))),
    **{f"laq_conv, {pooling}": lambda pooling=pooling: made_and_called(
        laq_conv.PairEncoder((16, 32), 1, 8, 4, 8, pooling, HALF), normal(3, 2, 16, 16, 3))
       for pooling in typing.get_args(laq_conv.Pooling)},
    "mstcn": lambda: made_and_called(
        MultiStage(2, 2, 16, 7, dtype=HALF), normal(4, 10, 7), jnp.ones((4, 10)), train=False),
    "fsq": lambda: made_and_called(Resampler(6, 5, 16, 1, 2, 8, HALF), normal(4, 6, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_does_not_lie_on_the_grid_of_bfloat16(name):
    found = WRITTEN[name]()
    assert found.dtype == jnp.float32
    on_grid = np.asarray(found == found.astype(HALF).astype(jnp.float32))
    assert on_grid.mean() < 0.05


READ = {
    "icl": (StateEncoder(16, HALF), ()),
    "mstcn": (MultiStage(1, 1, 16, 7, dtype=HALF), (jnp.ones((1, 4)),)),
    "fsq": (Resampler(2, 5, 16, 1, 2, 8, HALF), ()),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_not_rounded(name):
    module, rest = READ[name]
    more = {"train": False} if rest else {}
    x = jnp.full((1, 4, 3), 0.75)
    near = x + 2.0**-10  # the same number in bfloat16
    assert jnp.all(x.astype(HALF) == near.astype(HALF))
    variables = jax.jit(lambda x: module.init(jax.random.key(0), x, *rest, **more))(x)
    call = jax.jit(lambda x: module.apply(variables, x, *rest, **more))
    assert jnp.any(call(x) != call(near))


def test_the_state_of_a_policy_is_not_rounded():
    model, batch = policy("policies.vla_action", action_dim=2, chunk_length=2, state_dim=3, constant=(), binary=(),
                          head={"name": "policies.heads.chunk", "width": 8})  # fmt: skip
    x = jnp.full((4, 3), 0.75)
    variables = jax.jit(lambda batch: model.init(jax.random.key(0), batch, train=False))(batch)
    predict = jax.jit(lambda state: model.apply(variables, {**batch, "state": state}, method="predict")["action"])
    assert jnp.any(predict(x) != predict(x + 2.0**-10))


def test_bins_that_are_almost_as_likely_do_not_tie():
    """A learned distribution 8 bins wide: the most likely bin is the one at its centre, not the lowest of several."""
    centre, bins = 131.3, np.arange(256)
    head = bins_head.Model(action_dim=1, chunk_length=1, binary=(), dtype="bfloat16")
    variables = jitted.init(head, jax.random.key(0), normal(1, 1, 8))
    logits = 10 - np.square((bins - centre) / 8) / 2
    out = {"kernel": jnp.zeros((8, 256)), "bias": jnp.asarray(logits, jnp.float32)}
    variables = {"params": {**variables["params"], "out": out}}
    predicted = jitted.apply(head, variables, normal(1, 1, 8), None, None, method="sample")
    assert predicted.item() == pytest.approx((131 + 0.5) / 128 - 1)
