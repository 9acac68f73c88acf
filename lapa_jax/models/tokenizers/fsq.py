"""FSQ tokenizer of action chunks: T actions become N codes, and N codes become T actions.

A transformer auto-encoder with finite scalar quantisation (Mentzer et al. 2024, arXiv 2309.15505) between its halves,
as in QueST (arXiv 2407.15840). There is no codebook to learn, to collapse or to keep equal on all devices, and any
codes decode to a chunk. Learned queries read the chunk, so that N does not depend on T.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count, Dtype, FromData, Range, Remat
from lapa_jax.core.output import Output
from lapa_jax.data.normalize import Normalizer
from lapa_jax.data.statistics import kinds
from lapa_jax.models import base
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.quantizers.fsq import FSQ
from lapa_jax.nn.quantizers.usage import batch_usage, dataset_usage
from lapa_jax.nn.transformer import Transformer


def summarize(
    arrays: dict[str, np.ndarray], *, levels: Sequence[int], moving: np.ndarray, grippers: Sequence[int],
    middle: np.ndarray,
) -> dict[str, float]:  # fmt: skip
    """Scalars of a data set, over the steps that exist and the dimensions that move, in normalised units.

    Args:
      arrays: the arrays of `fsq.Model.evaluate`, over all examples (padding removed).
      levels: of the features of a code.
      moving: bool[A]: dimensions that are not constant. grippers: among them.
      middle: f[A]: a gripper is open on one side of it and closed on the other.

    Returns:
      "action_mse", "action_mae", "action_p99_error" (which 1 % of the absolute errors exceed) and "action_max_error"
      (the largest), and per dimension "action_mse_<i>" and so on.
      "action_r2_<i>": 1 - squared error over that of the dimension's mean, where it varies; "action_r2", their mean.
      "gripper_accuracy": share of the steps at which the side is right; where the data has grippers.
      usage of the codebook as of `dataset_usage`; "level_utilization": share of the levels of the features that occur,
      the mean over the features; "bits_per_chunk" and "tokens_per_chunk".
    """
    real = arrays["action_mask"] > 0
    counted = np.broadcast_to(moving, (len(real), len(moving))) & (arrays.get("action_dims", moving) > 0)
    counted = np.broadcast_to(counted[:, None], arrays["action"].shape)[real]
    action, guess = (arrays[name][real].astype(np.float64) for name in ("action", "reconstruction"))
    codes, size = arrays["codes"], int(np.prod(levels))
    result = _errors(action, guess, counted)
    if any(counted[:, i].any() for i in grippers):
        right = ((action > middle) == (guess > middle))[:, list(grippers)]
        result["gripper_accuracy"] = float(right[counted[:, list(grippers)]].mean())
    return {
        **result,
        **dataset_usage(codes, size),
        "level_utilization": level_utilization(codes, levels),
        "tokens_per_chunk": float(codes.shape[1]),
        "bits_per_chunk": float(codes.shape[1] * np.log2(size)),
    }


def level_utilization(codes: np.ndarray, levels: Sequence[int]) -> float:
    """The share of its levels that a feature takes anywhere in codes int[M, N], averaged over the features."""
    used, rest = [], np.asarray(codes)
    for level in levels:
        used.append(len(np.unique(rest % level)) / level)
        # Mixed radix, the first feature changes fastest.
        rest = rest // level
    return float(np.mean(used))


def _errors(action: np.ndarray, guess: np.ndarray, counted: np.ndarray) -> dict[str, float]:
    """Of steps f64[M, A]; `counted` bool[M, A] marks what counts."""
    squared, absolute = np.square(action - guess), np.abs(action - guess)
    result = {"action_mse": float(squared[counted].mean()), "action_mae": float(absolute[counted].mean()),
              "action_p99_error": float(np.percentile(absolute[counted], 99)),
              "action_max_error": float(absolute[counted].max())}  # fmt: skip
    scores = {}
    for i, rows in enumerate(counted.T):
        if not rows.any():
            continue
        error, variance = float(squared[rows, i].mean()), float(action[rows, i].var())
        result |= {f"action_mse_{i}": error, f"action_mae_{i}": float(absolute[rows, i].mean()),
                   f"action_p99_error_{i}": float(np.percentile(absolute[rows, i], 99)),
                   f"action_max_error_{i}": float(absolute[rows, i].max())}  # fmt: skip
        if variance > 1e-12:
            scores[f"action_r2_{i}"] = 1 - error / variance
    return result | scores | ({"action_r2": float(np.mean(list(scores.values())))} if scores else {})


class Resampler(nn.Module):
    """A sequence of L vectors read into one of M: learned queries stand beside the inputs in one transformer, and what
    becomes of them is the result. The encoder makes tokens of steps with it, the decoder steps of tokens.

    Attributes:
      outputs: M. features: of each output.
      dim, depth, heads, dim_head: of the transformer.
      dtype: dtype of the transformer; the first layer, which reads actions, and the last one, whose output is rounded
        or compared, are float32: bfloat16 rounds numbers near 1 to steps of 0.004.
      remat: see `Transformer`.
    """

    outputs: int
    features: int
    dim: int
    depth: int
    heads: int
    dim_head: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x: [B, L, F], mask: bool[B, L], False for vectors that nothing may read -> f32[B, M, features]."""
        batch, length, _ = x.shape
        initializer = nn.initializers.normal(0.5)
        tokens = Linear(self.dim, name="embed")(x) + self.param("positions", initializer, (length, self.dim))
        tokens = tokens.astype(self.dtype)
        queries = self.param("queries", initializer, (self.outputs, self.dim)).astype(self.dtype)
        # Queries behind the inputs: what they become is cut off at the end by their position.
        tokens = jnp.concatenate([tokens, jnp.broadcast_to(queries, (batch, *queries.shape))], axis=1)
        if mask is not None:
            # Queries are never masked, or a chunk without a step would attend to nothing.
            mask = jnp.pad(mask, ((0, 0), (0, self.outputs)), constant_values=True)
        stack = Transformer(self.depth, self.heads, self.dim_head, view=None, dtype=self.dtype, remat=self.remat,
                            name="stack")  # fmt: skip
        return Linear(self.features, name="out")(stack(tokens, mask=mask)[:, length:].astype(jnp.float32))


def refine(codes: jax.Array, levels: Sequence[int], sweeps: int, cost: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Codes whose cost no step of one feature to a neighbouring level would lower, as far as the sweeps get.

    Coordinate descent: feature after feature, of code after code, goes one level down or up where that costs less.

    Args:
      codes: i32[B, N] to begin with. levels: of the features of a code, as `FSQ` orders them.
      sweeps: how often all features are tried; 0 returns `codes`.
      cost: i32[B, N] -> f32[B], called twice for each feature and sweep.

    Returns:
      i32[B, N], of at most the cost of `codes`.
    """
    sizes = jnp.asarray(levels, jnp.int32)
    # A code is a number in mixed radix: a step of one level of feature i changes it by the product of the levels
    # before.
    basis = jnp.asarray([math.prod(levels[:i]) for i in range(len(levels))], jnp.int32)

    def one_feature(i, state):
        position, feature = i // len(levels) % codes.shape[1], i % len(levels)
        for step in (-1, 1):
            best, least = state
            level = best[:, position] // basis[feature] % sizes[feature] + step
            inside = (level >= 0) & (level < sizes[feature])
            other = best.at[:, position].add(jnp.where(inside, step * basis[feature], 0))
            costs = cost(other)
            better = costs < least
            state = jnp.where(better[:, None], other, best), jnp.where(better, costs, least)
        return state

    return jax.lax.fori_loop(0, sweeps * codes.shape[1] * len(levels), one_feature, (codes, cost(codes)))[0]


def action_fields(source) -> dict:
    """What a model of actions must know of its data.

    Args:
      source: `Chunks`, or a `Mixture` of them.

    Returns:
      "action_dim"; "low" and "high", the ends of each dimension in the units that the samples have, over all datasets;
      "grippers", the dimensions that have two values or "gripper" in their name, in every dataset that has them and
      where they move.
    """
    parts = list(getattr(source, "sources", {"": source}).values())
    datasets = [_of_dataset(part) for part in parts]
    width = max(len(low) for low, _, _ in datasets)
    low, high, seen_kinds = np.full(width, np.inf), np.full(width, -np.inf), [set() for _ in range(width)]
    for part_low, part_high, part_kinds in datasets:
        dims = slice(len(part_low))
        low[dims], high[dims] = np.minimum(low[dims], part_low), np.maximum(high[dims], part_high)
        for i, kind in enumerate(part_kinds):
            seen_kinds[i].add(kind)
    # A gripper in every dataset in which it moves: where another dataset has a number there, a logit cannot express it.
    grippers = [i for i, seen in enumerate(seen_kinds) if seen - {"constant"} == {"gripper"}]
    return {"action_dim": width, "low": low.tolist(), "high": high.tolist(), "grippers": grippers}


def _of_dataset(source) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Ends of the normalised dimensions f32[A], and for each "gripper", "constant" or "other"."""
    summary = source.statistics["action"]
    names = source.shards.features["action"].get("names") or [""] * len(summary["mean"])
    normalizer = Normalizer(summary, source.options.normalize)
    low, high = (normalizer.normalize(np.asarray(summary[end])) for end in ("min", "max"))
    dimension_kinds = []
    for kind, name in zip(kinds(summary), names, strict=True):
        gripper = kind == "binary" or "gripper" in str(name).lower()
        dimension_kinds.append("constant" if kind == "constant" else "gripper" if gripper else "other")
    return low, high, dimension_kinds


def check_width(name: str, values, width: int) -> None:
    """Refuses a field that should have one number a dimension."""
    if values is None or len(values) != width:
        raise UserError(f"{name} has {0 if values is None else len(values)} numbers for {width} action dimensions; "
                        "leave it out, the data tell it")


def mean_over_chunk(values: jax.Array, mask: jax.Array, dims: jax.Array) -> jax.Array:
    """The sum of [B, T, A] where steps and dimensions count, over the number that a whole chunk has: f32 [B].

    So every step counts the same in the mean over a batch; of a mean over each chunk's own steps the few that stand
    before much padding would take most (the error on whole chunks is then half as large again).

    Args:
      values: f32[B, T, A]. mask: f32[B, T]. dims: f32[B or 1, A]. Both are 1 for what counts, 0 for what does not.
    """
    # Dimensions that a dataset does not have are left out of both the sum and the number it is divided by.
    total = jnp.sum(values * mask[..., None] * dims[:, None], (1, 2))
    return total / jnp.maximum(mask.shape[1] * jnp.sum(dims, -1), 1e-6)


def binary_cross_entropy(logits: jax.Array, share: jax.Array) -> jax.Array:
    """-share log p - (1 - share) log(1 - p) with p = sigmoid(logits), in the form that cannot overflow."""
    return jnp.maximum(logits, 0) - logits * share + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def moving(low, high) -> np.ndarray:
    """bool[A]: which dimensions are not constant."""
    return np.asarray(high, np.float32) > np.asarray(low, np.float32)


def with_fields(spec: Mapping, fields: Mapping) -> dict:
    """`spec` with what it leaves open; its own values win. Another width than that of the data is refused."""
    chosen = {name: value for name, value in spec.items() if value is not None}
    if chosen.get("action_dim", fields["action_dim"]) != fields["action_dim"]:
        raise UserError(f"model.action_dim is {chosen['action_dim']} and the data's actions have "
                        f"{fields['action_dim']} dimensions; leave it None")
    return {**spec, **fields, **chosen}


def from_data(spec: dict, source, seed: int) -> dict:
    """The fields of `Model` with those filled in that the data tell; see `action_fields`."""
    return with_fields(spec, action_fields(source))


class Model(base.ActionTokenizer):
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

    action_dim: FromData = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    grippers: tuple[int, ...] | None = None
    chunk_length: Count = 16
    tokens: Count = 8
    levels: tuple[int, ...] = (8, 5, 5, 5)
    patch: Count = 1
    dim: Count = 512
    encoder_depth: Count = 4
    decoder_depth: Count = 4
    heads: Count = 8
    dim_head: Count = 64
    error: Literal["squared", "absolute"] = "squared"
    search: Annotated[int, Range(0)] = 0
    dtype: Dtype = "float32"
    remat: Remat = "none"

    def setup(self):
        self.quantizer = FSQ(self.levels)
        sizes = {"dim": self.dim, "heads": self.heads, "dim_head": self.dim_head, "dtype": jnp.dtype(self.dtype)}
        self.encoder = Resampler(self.tokens, len(self.levels), depth=self.encoder_depth, remat=self.remat, **sizes)
        steps, numbers = self.chunk_length // self.patch, self.patch * self.action_dim
        self.decoder = Resampler(steps, numbers, depth=self.decoder_depth, remat=self.remat, **sizes)

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit together, with what to change."""
        FSQ(self.levels).check()
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
        """Number of codes at each of the N positions."""
        return (FSQ(self.levels).size,) * self.tokens

    def __call__(self, batch, *, train: bool) -> Output:
        """Losses and metrics of a batch, with the encoder's own codes; nothing differs in training."""
        actions, mask = self._chunks(batch)
        vectors, codes = self.quantizer(self._features(actions, mask))
        named = self._losses(self._outputs(vectors), actions, mask, self._dims(batch))
        return Output(losses=named, metrics=batch_usage(codes, self.quantizer.size), codes=codes)

    def encode(self, batch) -> dict[str, jax.Array]:
        """The "codes" i32 [B, N] of chunks: "action" and "action_mask" of a batch, of a mixture also "action_dims"."""
        actions, mask = self._chunks(batch)
        codes = self.quantizer.nearest(self._features(actions, mask))
        return {"codes": self._search(codes, actions, mask, self._dims(batch)) if self.search else codes}

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
        codes = self.encode(batch)["codes"]
        return {"codes": codes, "actions": self.decode(codes)}

    def evaluate(self, batch) -> dict[str, jax.Array]:
        """Per example: "action" and "action_mask" as given, the "reconstruction" f32 [B, T, A] from the "codes" i32
        [B, N]; "action_dims" and "episode_id" where the batch has them."""
        actions, mask = self._chunks(batch)
        predicted = self.predict(batch)
        arrays = {"action": actions, "action_mask": mask, "reconstruction": predicted["actions"]}
        also = {name: batch[name] for name in ("action_dims", "episode_id") if name in batch}
        return {**arrays, "codes": predicted["codes"], **also}

    @nn.nowrap
    def summarize(self, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """Scalars from the arrays of `evaluate` over a data set; see `summarize`."""
        low, high = (np.asarray(ends, np.float64) for ends in (self.low, self.high))
        return summarize(
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
        # Decoding clips, so that beyond an end there is no error left to lower.
        beyond = ((actions >= high) & (error > 0)) | ((actions <= low) & (error < 0))
        cost = self._cost(jnp.where(beyond, 0.0, error))
        # Where between its ends a gripper is, as a soft target: data may hold values in between.
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
