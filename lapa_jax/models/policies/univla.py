"""UniVLA's policy (Bu et al. 2025, arXiv:2505.06111): OpenVLA's body that says latent actions as tokens of its own.

The sequence is [bos][image][prompt][latent codes]; code k is the id `first_code` + k. The prompt may end with the codes
of the step before. `tools/import_weights.py univla` makes such a model of a released folder, and with an action decoder
one of `univla_action`.
"""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import FILLED, Count, FromData, Range
from lapa_jax.core.output import Output
from lapa_jax.data import text
from lapa_jax.models import base
from lapa_jax.models.policies import vla
from lapa_jax.models.policies.openvla import TokenHead
from lapa_jax.models.policies.vision_language import VisionLanguageModel


class Spoken(NamedTuple):
    """What a model says.

    Attributes:
      codes: i32 [B, N]. logits: f32 [B, N, K], of the codes alone.
      states: [B, N, dim], what the codes are read off: of the prompt's last token and of all codes but the last. Where
        codes were given there is one more, of the last code.
      prefix: [B, S, dim], of all that comes before; the first one is of bos, then come those of the image.
    """

    codes: jax.Array
    logits: jax.Array
    states: jax.Array
    prefix: jax.Array


def from_data(spec: dict, source, seed: int) -> dict:
    """Fills in what is None and only the data tell, as `vla.from_data`."""
    return vla.from_data(spec, source, seed)


class Univla(VisionLanguageModel):
    """The body with the codes' tokens; what is chosen and learned is the models' own matter.

    Attributes: those of `VisionLanguageModel`, and
      code_length: N, codes of a latent action. codebook_size: K.
      first_code: the id of code 0.
      end: the id that follows the codes in training, Llama's `</s>`; None leaves it out of the loss.
    """

    code_length: FromData = 4
    codebook_size: Annotated[int | None, Range(2), FILLED] = 16
    first_code: Count = 32001
    end: int | None = 2

    def setup(self):
        super().setup()
        self.lm_head = TokenHead(self.llm.vocab, use_bias=False, dtype=jnp.dtype(self.dtype))

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that cannot work, with what to change."""
        super().check()
        if self.first_code + self.codebook_size > self.llm.vocab:
            raise UserError(f"first_code is {self.first_code}; with {self.codebook_size} codes behind it the "
                            f"vocabulary of {self.llm.vocab} is too small")

    def say(self, batch: Mapping[str, jax.Array]) -> Spoken:
        """The greedy codes behind the prompt, each among the codes alone; the image is seen once."""
        prefix, last = self.before_last(batch)
        x = jnp.concatenate([prefix.embeddings, self.llm.embed(last)], axis=1)
        mask, positions = self._places(prefix.real, 1)
        further = self.code_length - 1
        cache = self.llm.new_cache(x.shape[0], x.shape[1] + further)
        mask = jnp.pad(mask.whole(), ((0, 0), (0, 0), (0, further)))
        before, cache = self.llm(embeddings=x, mask=mask, positions=positions, cache=cache)
        states = [before[:, -1:]]
        logits = [self._logits(states[0])]
        for number in range(1, self.code_length):
            token = self.first_code + jnp.argmax(logits[-1], -1)
            state, cache = self.decode_step(prefix, self.llm.embed(token), number, cache)
            states.append(state)
            logits.append(self._logits(state))
        logits = jnp.concatenate(logits, axis=1)
        codes = jnp.argmax(logits, -1).astype(jnp.int32)
        return Spoken(codes, logits, jnp.concatenate(states, axis=1), before)

    def teach(self, batch: Mapping[str, jax.Array], codes: jax.Array) -> Spoken:
        """The same given true codes i32 [B, N]; its `codes` are the most likely ones at each position."""
        prefix, last = self.before_last(batch)
        tokens = jnp.concatenate([last, self.first_code + codes], axis=1)
        x = jnp.concatenate([prefix.embeddings, self.llm.embed(tokens)], axis=1)
        mask, positions = self._places(prefix.real, tokens.shape[1])
        states = self.llm(embeddings=x, mask=mask, positions=positions)
        before, states = states[:, : 1 - tokens.shape[1]], states[:, -tokens.shape[1] :]
        logits = self._logits(states[:, :-1])
        return Spoken(jnp.argmax(logits, -1).astype(jnp.int32), logits, states, before)

    def code_loss(self, taught: Spoken, codes: jax.Array) -> jax.Array:
        """f32 [B]: the cross-entropy, among all ids, of the codes i32 [B, N] and of the end behind them, as official.

        Args:
          taught: what `teach` made of them.
        """
        tokens, states = self.first_code + codes, taught.states[:, :-1]
        if self.end is not None:
            tokens, states = jnp.pad(tokens, ((0, 0), (0, 1)), constant_values=self.end), taught.states
        return vla.cross_entropy(self.lm_head(states), tokens).mean(-1)

    @nn.nowrap
    def history_template(self, codes: np.ndarray) -> tuple[str, list[int]]:
        """The template of a prompt with the codes int [N] of the step before, and their ids.

        Raises:
          UserError: what are no codes of one step.
        """
        codes = np.asarray(codes)
        if codes.shape != (self.code_length,) or codes.dtype.kind not in "iu" or not (
            (codes >= 0) & (codes < self.codebook_size)).all():  # fmt: skip
            raise UserError(f"history is {codes.tolist()}; the {self.code_length} codes of the step before are needed, "
                            f"each below {self.codebook_size}")  # fmt: skip
        before = "".join(f"<ACT_{code}>" for code in codes)
        template = f"In: What action should the robot take to {text.PLACE}? History action {before}\nOut:"
        return template, (self.first_code + codes).tolist()

    def _logits(self, states: jax.Array) -> jax.Array:
        """f32 [B, N, K]; nothing else of the head is read."""
        if self.is_initializing():
            self.lm_head(states)
        return self.lm_head.some(states, self.first_code, self.codebook_size)


class Model(Univla, base.LatentPolicy):
    """The codes of a latent action, from an image and an instruction.

    Batches are those of `data.samples = "steps"` with the fields "image", "text" and "latent". The loss is "latent",
    see `Univla.code_loss`.
    """

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes."""
        return {**super().example(batch_size),
                "latent": np.zeros((batch_size, self.code_length), np.int32),
                "latent_mask": np.ones(batch_size, np.float32)}  # fmt: skip

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> Output:
        """The loss of a batch; nothing differs in training."""
        codes = batch["latent"]
        with self.adapters():
            taught = self.teach(batch, codes)
            error = self.code_loss(taught, codes)
        return Output(losses={"latent": error},
                      metrics={"latent_accuracy": (taught.codes == codes).mean(-1)})  # fmt: skip

    @nn.nowrap
    def weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """1 for examples with a latent action, 0 for the others."""
        return {"latent": batch["latent_mask"], "latent_accuracy": batch["latent_mask"]}

    def predict(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The most likely codes i32 [B, N], one after the other, and "logits" f32 [B, N, K] given those before."""
        with self.adapters():
            spoken = self.say(batch)
        return {"codes": spoken.codes, "logits": spoken.logits}

    def evaluate(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """As `vla.Model.evaluate`."""
        with self.adapters():
            spoken, taught = self.say(batch), self.teach(batch, batch["latent"])
        return vla.measures(spoken.logits, taught.logits, batch["latent"], batch["latent_mask"])

    @nn.nowrap
    def summarize(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scalars of the arrays of `evaluate` over a whole data set; see `vla.summarize`."""
        return vla.summarize(arrays, self.codebook_size)
