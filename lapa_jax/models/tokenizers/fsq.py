"""FSQ tokenizer of action chunks: T actions become N codes, and N codes become T actions.

A transformer auto-encoder with finite scalar quantisation (Mentzer et al. 2024, arXiv 2309.15505) between its halves,
as QueST has it (arXiv 2407.15840): there is no codebook to learn, to collapse or to keep equal on all devices, and any
codes decode to a chunk. Learned queries read the chunk, so that N is chosen without regard to T.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.output import Output
from lapa_jax.models.tokenizers import fsq_summary
from lapa_jax.models.tokenizers.fsq_modules import (
    Resampler,
    action_fields,
    binary_cross_entropy,
    check_width,
    mean_over_chunk,
    moving,
    refine,
    with_fields,
)
from lapa_jax.models.tokenizers.laq_modules import DTYPES, check_choice
from lapa_jax.nn.quantizers.fsq import FSQ
from lapa_jax.nn.quantizers.usage import batch_usage
from lapa_jax.nn.transformer import REMAT_POLICIES

ERRORS = ("absolute", "squared")


def from_data(spec: dict, source, seed: int) -> dict:
    """The fields of `Model` with those filled in that the data tell; see `fsq_modules.action_fields`."""
    return with_fields(spec, action_fields(source))


class Model(nn.Module):
    """The tokenizer of action chunks.

    Batches hold "action" f32 [B, T, A] and "action_mask" f32 [B, T], 1 where the chunk has an action; of a mixture also
    "action_dims" f32 [B, A]. What lies where the mask is 0 is read by nothing. Losses: "reconstruction" of all
    dimensions that move but grippers; "gripper", the binary cross-entropy of where between its ends a gripper is. Both
    are sums over what the mask leaves, divided by what a whole chunk has: every step counts the same.

    An action at the end of its range may be overshot at no cost, since what is decoded is clipped to the range: a
    controller that saturates needs no precision there.

    Attributes:
      action_dim: A. low, high: ends of each dimension. grippers: dimensions whose decoder output is a logit. All four
        come from the data where they are None.
      chunk_length: T.
      tokens: N, codes a chunk; 1 to T.
      levels: of the features of a code, each at least 3; their product is the size of the codebook.
      patch: steps that stand for one token of the transformers; divides T.
      dim, encoder_depth, decoder_depth, heads, dim_head: of the two transformers.
      error: what "reconstruction" averages and the search lowers, the "absolute" or the "squared" error.
      search: how often `encode` tries the neighbouring levels of every feature in the decoder and keeps what comes
        nearer to the chunk. 0 takes the encoder at its word; 2 costs 4 x N x len(levels) runs of the decoder. Training
        does not search.
      dtype: "float32" or "bfloat16" computation; parameters, norms, softmax and quantisation are float32.
      remat: "none", "dots" or "full": what the backward pass recomputes to save memory.
    """

    action_dim: int | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    grippers: tuple[int, ...] | None = None
    chunk_length: int = 16
    tokens: int = 8
    levels: tuple[int, ...] = (8, 5, 5, 5)
    patch: int = 1
    dim: int = 512
    encoder_depth: int = 4
    decoder_depth: int = 4
    heads: int = 8
    dim_head: int = 64
    error: str = "squared"
    search: int = 0
    dtype: str = "float32"
    remat: str = "none"

    def setup(self):
        self.quantizer = FSQ(self.levels)
        sizes = {"dim": self.dim, "heads": self.heads, "dim_head": self.dim_head, "dtype": jnp.dtype(self.dtype)}
        self.encoder = Resampler(self.tokens, len(self.levels), depth=self.encoder_depth, remat=self.remat, **sizes)
        steps, numbers = self.chunk_length // self.patch, self.patch * self.action_dim
        self.decoder = Resampler(steps, numbers, depth=self.decoder_depth, remat=self.remat, **sizes)

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that cannot work, with what to change."""
        FSQ(self.levels).check()
        check_choice("error", self.error, ERRORS)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("remat", self.remat, REMAT_POLICIES)
        if self.action_dim is None:
            raise UserError("action_dim is not set; the data tell it, where there are some")
        for field in ("action_dim", "chunk_length", "tokens", "patch", "dim", "encoder_depth", "decoder_depth", "heads",
                      "dim_head"):  # fmt: skip
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{field} is {value!r}; it must be a whole number of at least 1")
        if isinstance(self.search, bool) or not isinstance(self.search, int) or self.search < 0:
            raise UserError(f"search is {self.search!r}; give a whole number of sweeps, 0 or more")
        if self.tokens > self.chunk_length:
            raise UserError(f"tokens is {self.tokens} for chunks of {self.chunk_length} steps; give at most one a step")
        if self.chunk_length % self.patch:
            raise UserError(f"patch {self.patch} does not divide chunk_length {self.chunk_length}")
        for field in ("low", "high"):
            check_width(field, getattr(self, field), self.action_dim)
        if wrong := [i for i in self.grippers or () if not 0 <= i < self.action_dim]:
            raise UserError(f"gripper dimension {wrong[0]} does not exist; actions have {self.action_dim} dimensions")

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes."""
        shape = (batch_size, self.chunk_length, self.action_dim)
        return {"action": np.zeros(shape, np.float32), "action_mask": np.ones(shape[:2], np.float32)}

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes at each of the N places."""
        return (FSQ(self.levels).size,) * self.tokens

    def __call__(self, batch, *, train: bool) -> Output:
        """Losses and metrics of a batch, with the encoder's own codes; nothing differs in training."""
        actions, mask = self._chunks(batch)
        vectors, codes = self.quantizer(self._features(actions, mask))
        named = self._losses(self._outputs(vectors), actions, mask, self._dims(batch))
        return Output(losses=named, metrics=batch_usage(codes, self.quantizer.size), codes=codes)

    def encode(self, batch) -> jax.Array:
        """The codes i32 [B, N] of chunks: "action" and "action_mask" of a batch, of a mixture also "action_dims"."""
        actions, mask = self._chunks(batch)
        codes = self.quantizer.nearest(self._features(actions, mask))
        return self._search(codes, actions, mask, self._dims(batch)) if self.search else codes

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes i32 [B, N] -> actions f32 [B, T, A], within the range of the training data.

        Raises:
          UserError: another number of codes.
        """
        if codes.shape[1:] != (self.tokens,):
            raise UserError(f"codes have shape {tuple(codes.shape)}; the model takes ('B', {self.tokens})")
        return self._actions(self._outputs(self.quantizer.lookup(codes)))

    def predict(self, batch) -> dict[str, jax.Array]:
        """Codes i32 [B, N] of "action" and the "actions" f32 [B, T, A] that they stand for."""
        codes = self.encode(batch)
        return {"codes": codes, "actions": self.decode(codes)}

    def evaluate(self, batch) -> dict[str, jax.Array]:
        """Per example: "action" and "action_mask" as given, the "reconstruction" f32 [B, T, A] from the "codes" i32
        [B, N]; "action_dims" and "episode_id" where the batch has them."""
        actions, mask = self._chunks(batch)
        predicted = self.predict(batch)
        found = {"action": actions, "action_mask": mask, "reconstruction": predicted["actions"]}
        also = {name: batch[name] for name in ("action_dims", "episode_id") if name in batch}
        return {**found, "codes": predicted["codes"], **also}

    @nn.nowrap
    def summarize(self, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """Scalars from the arrays of `evaluate` over a data set; see `fsq_summary.summarize`."""
        low, high = (np.asarray(ends, np.float64) for ends in (self.low, self.high))
        return fsq_summary.summarize(
            arrays, levels=self.levels, moving=moving(low, high), grippers=self.grippers or (), middle=(low + high) / 2
        )

    def _chunks(self, batch) -> tuple[jax.Array, jax.Array]:
        """Actions f32 [B, T, A], 0 where there is none, and the mask f32 [B, T]."""
        actions, mask = batch["action"], batch["action_mask"]
        expected = (self.chunk_length, self.action_dim)
        if tuple(actions.shape[1:]) != expected or tuple(mask.shape) != tuple(actions.shape[:2]):
            raise UserError(f"actions have shape {tuple(actions.shape)} and their mask {tuple(mask.shape)}; the model "
                            f"takes {('B', *expected)} and one mask value a step: a shorter chunk is filled up and "
                            "masked, a longer one cut")  # fmt: skip
        # where() and not a product: what is masked may be NaN
        return jnp.where(mask[..., None] > 0, actions, 0).astype(jnp.float32), mask.astype(jnp.float32)

    def _features(self, actions: jax.Array, mask: jax.Array) -> jax.Array:
        """What is quantised, f32 [B, N, len(levels)]. The mask is an input too: within a patch it tells 0 from none."""
        steps = jnp.concatenate([actions, mask[..., None]], axis=-1)
        patches = steps.reshape(len(steps), self.chunk_length // self.patch, -1)
        return self.encoder(patches, jnp.any(mask.reshape(*patches.shape[:2], self.patch) > 0, axis=-1))

    def _search(self, codes: jax.Array, actions: jax.Array, mask: jax.Array, dims: jax.Array) -> jax.Array:
        """Codes i32 [B, N] that decode nearer to the chunks, see `refine`."""
        decoder, variables = self.decoder.unbind()  # a bound module cannot be called within a loop of jax

        def cost(candidates):
            outputs = decoder.apply(variables, self.quantizer.lookup(candidates)).reshape(actions.shape)
            return mean_over_chunk(self._cost(self._actions(outputs) - actions), mask, dims)

        return refine(codes, self.levels, self.search, cost)

    def _cost(self, error: jax.Array) -> jax.Array:
        return jnp.abs(error) if self.error == "absolute" else jnp.square(error)

    def _outputs(self, vectors: jax.Array) -> jax.Array:
        """Quantised vectors -> f32 [B, T, A]: actions, and logits of grippers."""
        return self.decoder(vectors).reshape(len(vectors), self.chunk_length, self.action_dim)

    def _losses(self, outputs: jax.Array, actions: jax.Array, mask: jax.Array, dims: jax.Array) -> dict[str, jax.Array]:
        """The named losses f32 [B]. mask: f32 [B, T], dims: f32 [B or 1, A]: what counts."""
        low, high, gripper = self._ends()
        error = outputs - actions
        beyond = ((actions >= high) & (error > 0)) | ((actions <= low) & (error < 0))
        cost = self._cost(jnp.where(beyond, 0.0, error))
        share = jnp.clip((actions - low) / jnp.maximum(high - low, 1e-6), 0, 1)
        entropy = binary_cross_entropy(outputs, share)
        return {
            "reconstruction": mean_over_chunk(cost, mask, dims * ~gripper),
            "gripper": mean_over_chunk(entropy, mask, dims * gripper),
        }

    def _actions(self, outputs: jax.Array) -> jax.Array:
        """Outputs of the decoder as actions within their range."""
        low, high, gripper = self._ends()
        return jnp.where(gripper, low + (high - low) * nn.sigmoid(outputs), jnp.clip(outputs, low, high))

    def _dims(self, batch) -> jax.Array:
        """f32 [B or 1, A]: 1 for dimensions that move, and that the example's dataset has."""
        dims = jnp.asarray(moving(self.low, self.high), jnp.float32)[None]
        return dims * batch["action_dims"] if "action_dims" in batch else dims

    def _ends(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """low f32 [A], high f32 [A] and which dimensions are grippers, bool [A]."""
        gripper = np.isin(np.arange(self.action_dim), self.grippers or ())
        return jnp.asarray(self.low, jnp.float32), jnp.asarray(self.high, jnp.float32), jnp.asarray(gripper)
