"""UniVLA with an action decoder (Bu et al. 2025): what the model knows when it says a latent action, pooled, becomes a
chunk of actions.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count, FromData
from lapa_jax.core.output import Output
from lapa_jax.models import base
from lapa_jax.models.policies import action_measures, vision_language
from lapa_jax.models.policies.univla import Univla
from lapa_jax.nn.attention import Attention
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.losses import weighted_mean


def from_data(spec: dict, source, seed: int) -> dict:
    """Fills in what is None and only the data tell: sizes of the body, of actions and of the state.

    Raises:
      UserError: the samples are no chunks of actions with an image and an instruction.
    """
    batch = source.batch([])
    if len(batch.get("action", np.zeros(0)).shape) != 3 or "history_mask" in batch:
        raise UserError(f"{spec['name']} learns chunks of actions from an image and an instruction: set "
                        "data.samples=chunks, data.history=0 and data.fields=('image','text','action')")  # fmt: skip
    chunk, width = batch["action"].shape[1:]
    sizes = {"chunk_length": chunk, "action_dim": width, "learns_codes": "latent" in batch,
             "state_dim": batch["state"].shape[-1] if "state" in batch else 0}  # fmt: skip
    if "latent" in batch:
        sizes |= vision_language.latent_from_data(spec, source)
    return {**vision_language.body_from_data(spec, source), **vision_language.agree(spec, sizes)}


class RootNorm(nn.Module):
    """x over its root mean square times a learned scale, over the last axis; float32 inside. The root is at least 1e-8,
    where `RMSNorm` adds a number under it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]"""
        x = x.astype(jnp.float32)
        root = jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True))
        return x / jnp.maximum(root, 1e-8) * self.param("scale", nn.initializers.ones, x.shape[-1:])


class Pool(nn.Module):
    """Tokens to one vector, which a learned query gathers (multi-head attention pooling, Lee et al. 2019).

    Attributes: dim: of the vector. heads: of the attention. hidden: width of the feed-forward part.
    """

    dim: int
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, tokens: jax.Array, added: jax.Array | float = 0.0) -> jax.Array:
        """[B, N, D] -> [B, dim]; added: [B, dim], to the query."""
        tokens = Linear(self.dim, name="projection")(tokens)
        query = self.param("query", nn.initializers.normal(0.02), (self.dim,)) + added
        query = jnp.broadcast_to(query, (tokens.shape[0], self.dim))[:, None]
        attention = Attention(self.heads, self.dim // self.heads, out_bias=True, name="attention")
        # the norms stand behind the sums
        query = RootNorm(name="attention_norm")(query + attention(query, tokens))
        forward = GatedForward(self.hidden, name="feedforward")
        return RootNorm(name="feedforward_norm")(query + forward(query))[:, 0]


class GatedForward(nn.Module):
    """`SwiGLU` with biases. Attributes: hidden: width inside."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]"""
        gated = nn.silu(Linear(self.hidden, name="gate")(x)) * Linear(self.hidden, name="up")(x)
        return Linear(x.shape[-1], name="down")(gated)


class Model(Univla, base.ActionPolicy):
    """Chunks of actions, from an image and an instruction.

    Batches are those of `data.samples = "chunks"` with the fields "image", "text" and "action", perhaps "state". The
    loss is "action", the absolute error of what the decoder makes of the model's own greedy codes. With the field
    "latent" it is that of what it makes of the true codes, and there is the loss "latent" of saying these
    (`Univla.code_loss`); the official training is the sum of the two.

    Attributes: those of `Univla`, and
      learns_codes: whether batches hold "latent". None is taken from the data.
      action_dim, chunk_length: A and T. state_dim: S, 0 for none. None is taken from the data.
      decoder_dim, decoder_heads, decoder_hidden: of the two `Pool`s.
      squash: whether the actions go through a tanh; the decoder that sees the state has none.
    """

    kind = "coded_policy"

    learns_codes: bool | None = False
    action_dim: FromData = None
    chunk_length: FromData = None
    state_dim: int | None = 0
    decoder_dim: Count = 512
    decoder_heads: Count = 8
    decoder_hidden: Count = 2048
    squash: bool = True

    def setup(self):
        super().setup()
        pool = lambda: Pool(self.decoder_dim, self.decoder_heads, self.decoder_hidden)  # noqa: E731
        self.visual_pool, self.latent_pool = pool(), pool()
        self.to_actions = Linear(self.chunk_length * self.action_dim)
        if self.state_dim:
            self.state_up, self.state_out = Linear(self.decoder_dim), Linear(self.decoder_dim)

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that cannot work, with what to change."""
        super().check()
        if self.decoder_dim % self.decoder_heads:
            raise UserError(f"decoder_heads is {self.decoder_heads}; it must divide decoder_dim, {self.decoder_dim}")

    @property
    def tokens(self) -> int:
        """How many are decoded before the actions."""
        return self.code_length

    @nn.nowrap
    def first_token_only(self) -> "Model":
        """The same model that stops behind its first token; the difference in time is that of the others."""
        return self.clone(code_length=1)

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes, with all masks 1."""
        batch = {**super().example(batch_size),
                 "action": np.zeros((batch_size, self.chunk_length, self.action_dim), np.float32),
                 "action_mask": np.ones((batch_size, self.chunk_length), np.float32)}  # fmt: skip
        state = {"state": np.zeros((batch_size, self.state_dim), np.float32)} if self.state_dim else {}
        codes = {"latent": np.zeros((batch_size, self.code_length), np.int32)} if self.learns_codes else {}
        return batch | state | codes

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> Output:
        """The losses of a batch; nothing differs in training."""
        losses, metrics = {}, {}
        if self.learns_codes:
            codes = batch["latent"]
            with self.adapters():
                taught = self.teach(batch, codes)
                losses["latent"] = self.code_loss(taught, codes)
            metrics["latent_accuracy"] = (taught.codes == codes).mean(-1)
            # those that codes are read off, as when it acts; the official training takes those of the codes themselves
            action = self.decode_actions(taught.prefix, taught.states[:, :-1], batch.get("state"))
        else:
            action = self.predict(batch)["action"]
        losses["action"] = weighted_mean(jnp.abs(action - batch["action"]), self._weight(batch))
        return Output(losses=losses, metrics=metrics)

    @nn.nowrap
    def weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """How many numbers of its actions each example has to learn from."""
        return {"action": jnp.sum(self._weight(batch), (1, 2))}

    def predict(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """"action" f32 [B, T, A], normalised, and the "codes" i32 [B, N] that the model says."""
        with self.adapters():
            spoken = self.say(batch)
        return {"action": self.decode_actions(spoken.prefix, spoken.states, batch.get("state")), "codes": spoken.codes}

    def evaluate(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example f32 [B, T, A]: "action", "prediction", "weight" of what counts."""
        return {"action": batch["action"], "prediction": self.predict(batch)["action"],
                "weight": self._weight(batch)}  # fmt: skip

    @nn.nowrap
    def summarize(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scalars of the arrays of `evaluate` over a data set, in normalised units; see `action_measures`."""
        return action_measures.summarize(arrays, ())

    def decode_actions(self, prefix: jax.Array, latent: jax.Array, state: jax.Array | None) -> jax.Array:
        """f32 [B, T, A] of the states [B, S, dim] before the codes, those [B, N, dim] that codes are read off, and the
        robot's state f32 [B, S]."""
        # as many as the image has patches, but from bos on: so the released decoders were trained
        visual = self.visual_pool(prefix[:, : self.image_tokens].astype(jnp.float32))
        x = self.latent_pool(latent.astype(jnp.float32), visual)
        if self.state_dim:
            hidden = nn.gelu(self.state_up(state.astype(jnp.float32)), approximate=False)
            x = jnp.concatenate([x, self.state_out(hidden)], axis=-1)
        x = self.to_actions(x)
        x = jnp.tanh(x) if self.squash else x
        return x.reshape(-1, self.chunk_length, self.action_dim)

    @nn.nowrap
    def _weight(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """f32 [B, T, A]: 0 for steps without an action and dimensions that a robot does not have."""
        weight = jnp.broadcast_to(batch["action_mask"][..., None], batch["action"].shape)
        return weight * batch["action_dims"][:, None] if "action_dims" in batch else weight
