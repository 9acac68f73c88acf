"""Stage 2 of LAPA (Ye et al. 2024): a vision-language model that predicts the latent action of a picture and an
instruction, with no action label anywhere."""

from collections.abc import Mapping
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.fields import FILLED, FromData, Range
from lapa_jax.core.output import Output
from lapa_jax.models import base
from lapa_jax.models.policies import vision_language
from lapa_jax.models.policies.vision_language import VisionLanguageModel
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm


def summarize(arrays: Mapping[str, np.ndarray], codebook_size: int) -> dict[str, float]:
    """Scalars of a data set; examples whose mask is 0 do not count.

    Args:
      arrays: those of `vla.Model.evaluate` over all examples. codebook_size: K.

    Returns:
      "loss": the mean cross-entropy in nats, and "loss_unigram": that of always giving the codes' own frequencies, the
        best that can be done without looking.
      "latent_accuracy" and "latent_accuracy_top3" (the code is among the three most likely), the means over code
      positions, and each "_position_<n>".
      "latent_accuracy_all": share of examples with every code right.
      "majority_accuracy", "majority_accuracy_top3": of always giving each position's most frequent code(s) of these
        very data, which no policy without eyes can beat; "accuracy_gain": latent_accuracy minus majority_accuracy.
      "predicted_perplexity" and "perplexity": how many codes a position really has in use, predicted and true.
    """
    kept = arrays["latent_mask"] > 0
    codes, predicted, loss, top3 = (arrays[name][kept] for name in ("codes", "predicted", "loss", "top3"))
    if len(codes) == 0:
        return {}
    shares, given = _shares(codes, codebook_size), _shares(predicted, codebook_size)
    right, ranked = (codes == predicted), np.sort(shares, axis=1)
    by_position = {"latent_accuracy": right.mean(axis=0), "latent_accuracy_top3": top3.mean(axis=0)}
    result = {
        "loss": float(loss.mean()),
        "loss_unigram": float(_entropy(shares).mean()),
        "latent_accuracy": float(right.mean()),
        "latent_accuracy_top3": float(top3.mean()),
        "latent_accuracy_all": float(right.all(axis=1).mean()),
        "majority_accuracy": float(ranked[:, -1].mean()),
        "majority_accuracy_top3": float(ranked[:, -3:].sum(1).mean()),
        "perplexity": float(np.exp(_entropy(shares)).mean()),
        "predicted_perplexity": float(np.exp(_entropy(given)).mean()),
    }
    result["accuracy_gain"] = result["latent_accuracy"] - result["majority_accuracy"]
    return result | {f"{name}_position_{n}": float(share) for name, shares in by_position.items()
                     for n, share in enumerate(shares)}  # fmt: skip


def _shares(codes: np.ndarray, size: int) -> np.ndarray:
    """f64 [N, K]: how often each code occurs at each code position."""
    return np.stack([np.bincount(column, minlength=size) / len(codes) for column in codes.T])


def _entropy(shares: np.ndarray) -> np.ndarray:
    """f64 [N], in nats."""
    return -np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), axis=1)


def from_data(spec: dict, source, seed: int) -> dict:
    """Fills in what is None and only the data tell, see `vision_language`; `seed` is not needed."""
    return {**vision_language.body_from_data(spec, source), **vision_language.latent_from_data(spec, source)}


class Model(VisionLanguageModel, base.LatentPolicy):
    """The codes of a latent action, from pictures and an instruction.

    Batches are those of `data.samples = "steps"` with the fields "image", "text" and "latent". The loss is "latent",
    the cross-entropy, a mean over the N codes.

    Attributes, besides those of `VisionLanguageModel`:
      code_length: N, codes of a latent action. codebook_size: K, how many there are. None is taken from the labels.
      decode: "parallel": N learned queries predict all codes at once (the specification's); "autoregressive": each
        code sees those before it (LAPA's), in training the true ones.
    """

    code_length: FromData = None
    codebook_size: Annotated[int | None, Range(2), FILLED] = None
    decode: Literal["parallel", "autoregressive"] = "parallel"

    def setup(self):
        super().setup()
        new, dim = nn.initializers.normal(0.02), self.llm.dim
        parallel = self.decode == "parallel"
        self.queries = self.param("queries", new, (self.code_length if parallel else 1, dim))
        if not parallel:
            self.code_embedding = self.param("code_embedding", new, (self.codebook_size, dim))
        # float32: logits rounded to bfloat16 tie at the top, and argmax takes the lowest code of a tie.
        self.codes_norm, self.to_codes = LayerNorm(dtype=jnp.dtype(self.dtype)), Linear(self.codebook_size)

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes."""
        return {**super().example(batch_size),
                "latent": np.zeros((batch_size, self.code_length), np.int32),
                "latent_mask": np.ones(batch_size, np.float32)}  # fmt: skip

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> Output:
        """The loss of a batch; nothing differs in training."""
        with self.adapters():
            logits, codes = self._teacher_forced_logits(batch), batch["latent"]
        right = (jnp.argmax(logits, -1) == codes).mean(-1)
        return Output(losses={"latent": cross_entropy(logits, codes).mean(-1)},
                      metrics={"latent_accuracy": right})  # fmt: skip

    @nn.nowrap
    def weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """1 for examples with a latent action, 0 for the others."""
        return {"latent": batch["latent_mask"], "latent_accuracy": batch["latent_mask"]}

    def predict(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The most likely codes i32 [B, N], one after the other, and "logits" f32 [B, N, K] given those before."""
        with self.adapters():
            decode = self._teacher_forced_logits if self.decode == "parallel" else self._decode_autoregressive
            logits = decode(batch)
        return {"codes": jnp.argmax(logits, -1), "logits": logits}

    def evaluate(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: "loss" f32 [B, N], given the true codes before; "codes" and "predicted" i32 [B, N]; "top3"
        bool [B, N], whether the code is among the three most likely; "latent_mask" f32 [B]."""
        codes, logits = batch["latent"], self.predict(batch)["logits"]
        with self.adapters():
            taught = logits if self.decode == "parallel" else self._teacher_forced_logits(batch)
        return measures(logits, taught, codes, batch["latent_mask"])

    @nn.nowrap
    def summarize(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scalars of the arrays of `evaluate` over a whole data set; see `vla_summary`."""
        return summarize(arrays, self.codebook_size)

    def _teacher_forced_logits(self, batch) -> jax.Array:
        """Logits f32 [B, N, K]; one after the other, given the true codes before."""
        queries = self._first(batch["text"].shape[0])
        if self.decode == "autoregressive":
            queries = jnp.concatenate([queries, self._embed_codes(batch["latent"][:, :-1])], axis=1)
        return self._logits(self.backbone(self.embed_prefix(batch), queries))

    def _decode_autoregressive(self, batch) -> jax.Array:
        """Logits f32 [B, N, K], given the codes that they themselves make the most likely."""
        prefix = self.embed_prefix(batch)
        state, cache = self.prefill(prefix, self._first(batch["text"].shape[0]), self.code_length - 1)
        first = self._logits(state)

        def step(module, carry, number):
            logits, cache = carry
            query = module._embed_codes(jnp.argmax(logits, -1))
            state, cache = module.decode_step(prefix, query, number, cache)
            logits = module._logits(state)
            return (logits, cache), logits

        # One loop in the compiled program instead of a copy of the decoder for each code: it compiles in half the time.
        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        _, further = scan(self, (first, cache), jnp.arange(1, self.code_length))
        return jnp.concatenate([first, jnp.moveaxis(further[:, :, 0], 0, 1)], axis=1)

    def _first(self, batch: int) -> jax.Array:
        return jnp.broadcast_to(self.queries, (batch, *self.queries.shape))

    def _embed_codes(self, codes: jax.Array) -> jax.Array:
        return self.code_embedding[codes].astype(jnp.dtype(self.llm.dtype))

    def _logits(self, hidden: jax.Array) -> jax.Array:
        return self.to_codes(self.codes_norm(hidden))


def measures(logits: jax.Array, taught: jax.Array, codes: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """What `evaluate` of models of latent actions gives.

    Args:
      logits: f32 [B, N, K], given the model's own codes before. taught: the same, given the true ones.
      codes: i32 [B, N], the true ones. mask: f32 [B], 0 for examples that do not count.
    """
    best = jax.lax.top_k(logits, min(3, logits.shape[-1]))[1]
    return {
        "loss": cross_entropy(taught, codes),
        "codes": codes,
        "predicted": best[..., 0],
        "top3": (best == codes[..., None]).any(-1),
        "latent_mask": mask,
    }


def cross_entropy(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """f32 [B, N, K] and i32 [B, N] -> f32 [B, N], in nats."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), codes[..., None], axis=-1)[..., 0]
