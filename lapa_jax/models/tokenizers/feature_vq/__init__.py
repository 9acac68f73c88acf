"""Categorical hierarchical VQ-VAE of feature vectors: categories of features x three levels of codes.

Features that correlate form a category (`feature_vq.categories`). Each category has an encoder of its own and three
codebooks of different widths and sizes, side by side; one decoder reads all codes. The levels are numbered, not called
coarse and fine: level 0 has the shortest vectors and the most codes.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count, Range, Share
from lapa_jax.core.output import Output
from lapa_jax.models import base
from lapa_jax.models.tokenizers.feature_vq import categories, metrics
from lapa_jax.models.tokenizers.feature_vq.codebooks import Codebooks
from lapa_jax.models.tokenizers.feature_vq.layout import (
    LEVELS,
    TOPO_WEIGHTS,
    Layout,
    auto_ratios,
    codebook_sizes,
    latent_dims,
    parse_ratios,
)
from lapa_jax.nn import losses
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm, RunningNorm


def cross_correlation(latents: jax.Array, owner: np.ndarray) -> jax.Array:
    """Mean squared correlation between latents of different categories, a scalar f32; 0 for a single category.

    Every entry has a gradient: a category is pushed to say what the others do not. (A penalty on codebooks that are
    moving averages, or on numbers taken out of the computation, would push nothing.)

    Args:
      latents: f32 [B, D] of all categories.
      owner: int [D], the category of each.
    """
    centered = latents - jnp.mean(latents, axis=0)
    # A latent that stands still correlates with nothing, and must not divide by zero.
    standard = centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=0) + 1e-6)
    correlation = jnp.matmul(standard.T, standard, precision="highest") / len(latents)
    # Latents of one category may correlate: they are made from the same features.
    apart = owner[:, None] != owner[None, :]
    return jnp.sum(jnp.square(correlation) * apart) / max(int(apart.sum()), 1)


def pairwise_distances(x: jax.Array) -> jax.Array:
    """Euclidean distances f32 [P, n, n] between the rows of each of f32 [P, n, D]; the gradient at 0 is 0."""
    squares = jnp.sum(jnp.square(x), axis=2)
    lengths = squares[:, :, None] + squares[:, None, :]
    squared = lengths - 2 * jnp.einsum("pid,pjd->pij", x, x, precision="highest")
    apart = squared > 1e-6 * lengths  # below that it is rounding of the difference above
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def distance_correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Pearson's correlation f32 [P] of two tables of distances [P, n, n], the diagonal left out; 0 if constant."""
    # Distances to oneself are 0 in both tables, and would make them look alike.
    others = 1.0 - jnp.eye(a.shape[1])

    def centered(x):
        return (x - jnp.sum(x * others, (1, 2), keepdims=True) / jnp.sum(others)) * others

    a, b = centered(a), centered(b)
    energy = jnp.sum(jnp.square(a), (1, 2)) * jnp.sum(jnp.square(b), (1, 2))
    return jnp.sum(a * b, (1, 2)) * jax.lax.rsqrt(energy + 1e-12)


def topographic(features: jax.Array, latents: jax.Array, quantized: jax.Array) -> jax.Array:
    """1 - correlation of distances before and after, a scalar f32 in [0, 2].

    For every latent: 0.3 (1 - r(features, latent)) + 0.7 (1 - r(latent, code)), averaged, where r is Pearson's
    correlation over all pairs of different rows. Cost and memory grow with the square of the rows.

    Args:
      features: f32 [P, n, F], for each latent the features of its category (zeros are padding).
      latents: f32 [P, n, D].
      quantized: the codes' vectors for `latents`, with their straight-through gradient.
    """
    # Three tables of distances: of the features, of the latents made from them, and of the codes' vectors.
    near, middle, far = map(pairwise_distances, (features, latents, quantized))
    before, after = TOPO_WEIGHTS
    loss = before * (1 - distance_correlation(near, middle)) + after * (1 - distance_correlation(middle, far))
    return jnp.mean(loss)


class CategoryEncoder(nn.Module):
    """The features of one category to one vector a level, each of mean 0 and root mean square 1 over the data.

    Vectors are normalised by running statistics over examples. (A layer norm over a vector of 4 numbers would throw
    away its length, and with it how far from the average an example is.)

    Attributes:
      hidden, embedding: widths of the two layers. dims: widths of the levels' vectors. dropout: share.
    """

    hidden: int
    embedding: int
    dims: Sequence[int]
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """f32 [B, n] -> a list of f32 [B, D], one a level."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = drop(nn.relu(Linear(self.hidden, name="hidden_layer")(x)))
        x = LayerNorm(name="norm")(nn.relu(Linear(self.embedding, name="embedding_layer")(x)))
        heads = [drop(Linear(width, name=f"level_{i}")(x)) for i, width in enumerate(self.dims)]
        norms = [RunningNorm(name=f"norm_{i}") for i in range(len(self.dims))]
        # RunningNorm takes vectors by position; a category has a single one.
        return [norm(head[:, None], train=train)[:, 0] for norm, head in zip(norms, heads)]


class FeatureDecoder(nn.Module):
    """Vectors to all features: one hidden layer.

    Attributes: hidden: its width. features: numbers that come out. dropout: share.
    """

    hidden: int
    features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """f32 [B, D] -> f32 [B, features]."""
        x = nn.relu(Linear(self.hidden, name="hidden_layer")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Linear(self.features, name="to_features")(x)


PartialDecoders = nn.vmap(
    FeatureDecoder, in_axes=(0, None), out_axes=0, variable_axes={"params": 0}, split_rngs={"params": True}
)
"""A `FeatureDecoder` for each of P vectors: f32 [P, B, D] -> f32 [P, B, features]."""


COLUMNS = ("feature", "state")
DISCOVERY_VALUES = 1 << 23
"""Numbers that categories are found from, at most; more features take fewer rows."""


def from_data(spec: Mapping, source, seed: int) -> dict:
    """Fills in what only the data tell: scaling, categories, constants, duplicates, and the sizes of the codebooks.

    Args:
      spec: fields of `Model`; "groups", "latent_dims" and "codebook_sizes" that are given stay as they are.
      source: samples with the column "feature" or "state".
      seed: chooses the `discovery_rows` rows that are looked at, where there are more.

    Returns:
      `spec` with the other fields of `Model` that are None.
    """
    defaults = {name: field.default for name, field in Model.__dataclass_fields__.items()}
    spec = {**{name: defaults[name] for name in _DISCOVERY}, **spec}
    ratios = parse_ratios(spec["compression_ratios"])
    discovered = categories.discover(
        sample_rows(source, spec["discovery_rows"], seed), count=spec["num_categories"],
        max_clusters=spec["max_clusters"], min_features=spec["min_features"], groups=spec.get("groups"),
        orthogonality_target=spec["orthogonality_target"],
    )  # fmt: skip
    copies = {feature for feature, _, _ in discovered.duplicates}
    # A copy has nothing to add for the network, and would count twice in the sizes below.
    inputs = [[i for i in group if i not in copies] for group in discovered.groups]
    per_category = [ratios or auto_ratios(discovered.correlation[np.ix_(group, group)]) for group in inputs]
    dims = [latent_dims(len(group), r) for group, r in zip(inputs, per_category)]
    sizes = [codebook_sizes(len(group), len(source)) for group in inputs]
    filled = {
        "feature_dim": len(discovered.center),
        "groups": discovered.groups,
        "constants": discovered.constants,
        "duplicates": discovered.duplicates,
        "orphans": discovered.orphans,
        "center": discovered.center.tolist(),
        "scale": discovered.scale.tolist(),
        "silhouette": discovered.silhouette,
        "centroid_correlation": discovered.orthogonality,
    }
    proposed = {"latent_dims": dims, "codebook_sizes": sizes}
    return {**spec, **filled, **{name: spec.get(name) or value for name, value in proposed.items()}}


_DISCOVERY = ("compression_ratios", "discovery_rows", "num_categories", "max_clusters", "min_features",
              "orthogonality_target")  # fmt: skip


def sample_rows(source, limit: int, seed: int) -> np.ndarray:
    """Up to `limit` rows f64[N, F] of a source, in order; which ones is a function of the seed."""
    column = _column(source.batch([]))
    width = source.batch([])[column].shape[-1]
    # Correlation takes rows x features numbers at once: wide data give fewer rows.
    limit = max(2, min(limit, DISCOVERY_VALUES // max(width, 1)))
    chosen = np.arange(len(source))
    if len(source) > limit:
        chosen = np.sort(np.random.default_rng(seed).choice(len(source), limit, replace=False))
    # In parts, to bound memory: a batch of the source may hold further columns.
    parts = np.array_split(chosen, -(-len(chosen) // 4096))
    return np.concatenate([source.batch(part)[column].astype(np.float64) for part in parts])


def _column(batch: Mapping) -> str:
    for name in COLUMNS:
        if name in batch:
            return name
    raise UserError(f"these samples have {', '.join(sorted(batch))}, no feature vectors: set data.samples='steps' and "
                    f"data.fields to ('feature',) or ('state',)")  # fmt: skip


class Model(base.FeatureTokenizer):
    """The feature tokenizer.

    Batches hold "feature", or "state" in its place: f32 [B, F], in the data's units. Losses: "reconstruction", mean
    squared error of the standardised features; "commitment" of the vectors to their codes; "orthogonality", mean
    squared correlation between latents of different categories; "informativeness", mean squared error of the partial
    decoders, each of which must tell all features from one code; "topographic", see `topographic`. Orthogonality
    and topographic compare the examples of a batch, and are the same number for each of them.

    What the data tell is filled in by `from_data` and kept in the run's config, so that loading needs no data.

    Attributes:
      feature_dim: F. groups: per category, the indices of its features. constants: features that never change: nothing
        encodes them, decoding returns their value. duplicates: (feature, original, sign): features that are others in
        other units; decoding computes them from the original. orphans: features of no cluster, which joined the closest
        category. center, scale: per feature, robust mean and standard
        deviation. None (of groups, center, scale) is filled in.
      silhouette, centroid_correlation: what became of the search, for the record: how well features part into
        categories, at most 1, and the largest |correlation| of two category centroids.
      latent_dims, codebook_sizes: per category, three numbers; None follows `feature_vq.layout`.
      compression_ratios: width of the three levels' vectors relative to a category's number of features, as
        "0.5:1:1.5", or "auto" by the spectrum of each category.
      num_categories: how many categories; None chooses by silhouette. max_clusters: from 2 to so many.
      min_features: a smaller cluster is no category, its features join the closest one.
      discovery_rows: rows that categories are found from, at most.
      orthogonality_target: what the |correlation| of category centroids should stay under; categories that do come
        before those with a better silhouette, and the evaluation's report holds it against held-out rows.
      hidden_dim, embedding_dim: of the encoders. decoder_dim, partial_dim: hidden width of the decoders.
      dropout: in encoders and decoder.
      clip: standardised features beyond this are cut; "clipped" tells how many are.
      ema_decay: of the codebooks' moving averages.
      dead_share: a code with under this share of the mean use is replaced. dead_age: training steps before that may
        happen, see `VQ`.
      topo_samples: examples of a batch whose distances "topographic" compares, at most; three at least.
      composite_loss, composite_topo_post, composite_quality: weights of these metrics in "composite", by which the best
        checkpoint is chosen.
    """

    feature_dim: int | None = None
    groups: tuple[tuple[int, ...], ...] | None = None
    constants: tuple[int, ...] = ()
    duplicates: tuple[tuple[int, int, int], ...] = ()
    orphans: tuple[int, ...] = ()
    center: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    silhouette: float = 0.0
    centroid_correlation: float = 0.0
    latent_dims: tuple[tuple[int, ...], ...] | None = None
    codebook_sizes: tuple[tuple[int, ...], ...] | None = None
    compression_ratios: str = "0.5:1:1.5"
    num_categories: Annotated[int | None, Range(1)] = None
    max_clusters: Annotated[int, Range(2)] = 50
    min_features: Count = 3
    discovery_rows: Count = 20_000
    orthogonality_target: Annotated[float, Range(0, 1)] = 0.25
    hidden_dim: Count = 256
    embedding_dim: Count = 126
    decoder_dim: Count = 256
    partial_dim: Count = 128
    dropout: Share = 0.1
    clip: Annotated[float, Range(above=0)] = 10.0
    ema_decay: Share = 0.995
    dead_share: Share = 0.1
    dead_age: Count = 10_000
    topo_samples: Annotated[int, Range(3)] = 1024
    composite_loss: float = -1.0
    composite_topo_post: float = 0.5
    composite_quality: float = 0.5

    def setup(self):
        layout = self.layout()
        self.encoders = [CategoryEncoder(self.hidden_dim, self.embedding_dim, dims, self.dropout)
                         for dims in layout.dims]  # fmt: skip
        self.codebooks = Codebooks(layout.flat_sizes, layout.flat_dims, self.ema_decay, self.dead_share, self.dead_age)
        self.decoder = FeatureDecoder(self.decoder_dim, len(layout.singles), self.dropout)
        self.partial_decoders = PartialDecoders(self.partial_dim, len(layout.singles))

    @nn.nowrap
    def layout(self) -> Layout:
        """Which feature goes where."""
        return Layout(self.feature_dim, self.groups, self.constants, self.duplicates, self.latent_dims,
                      self.codebook_sizes)  # fmt: skip

    @property
    def code_names(self) -> tuple[str, ...]:
        """What the positions of a row of codes are called: category and level."""
        return tuple(f"category {c} level {level}" for c in range(len(self.groups)) for level in range(LEVELS))

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit together, with what to change."""
        filled = ("feature_dim", "groups", "center", "scale", "latent_dims", "codebook_sizes")
        if missing := [name for name in filled if getattr(self, name) is None]:
            raise UserError(f"{', '.join(missing)} must be filled in from data by from_data, as training does")
        self.layout().check()
        for name in ("center", "scale"):
            if len(getattr(self, name)) != self.feature_dim:
                raise UserError(f"{name} has {len(getattr(self, name))} numbers for {self.feature_dim} features")

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes."""
        return {"feature": np.zeros((batch_size, self.feature_dim), np.float32)}

    def __call__(self, batch, *, train: bool) -> Output:
        """Losses and metrics of a batch; with `train` codebooks and running statistics move."""
        layout, target = self.layout(), self._standardized(batch[_column(batch)])
        latents = self._encode(target, train=train)
        quantized, codes, commitment, metrics = self.codebooks(latents, train=train)
        prediction = self.decoder(self._joined(quantized), train)
        target = target[:, np.array(layout.singles)]
        few = slice(0, self.topo_samples)
        # Distances between all pairs: the first rows of the batch are enough, and order in a batch is random.
        tables = self._features_of_latents(target[few]), latents[few].swapaxes(0, 1), quantized[few].swapaxes(0, 1)
        batched = jnp.ones(len(target), jnp.float32)
        named = {
            "reconstruction": losses.mean_squared_error(prediction, target),
            "commitment": jnp.mean(commitment, axis=1),
            "orthogonality": batched * cross_correlation(self._joined(latents), layout.owner),
            "informativeness": self._informativeness(quantized, target),
            "topographic": batched * topographic(*tables),
        }
        return Output(losses=named, metrics=metrics, codes=codes)

    def encode(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Features f32 [B, F] of a batch, in the data's units -> "codes" i32 [B, C * 3] and "latent" f32 [B, D], what
        was quantised to them.

        Codes stand category after category, the three levels of each; code i is below `codebook_sizes` of its
        position.
        """
        latents = self._encode(self._standardized(batch[_column(batch)]), train=False)
        return {"codes": self.codebooks.nearest(latents), "latent": self._joined(latents)}

    def decode(self, codes: jax.Array) -> jax.Array:
        """Codes i32 [B, C * 3] -> features f32 [B, F] in the data's units, constants and duplicates included."""
        standardized = self._decode(self.codebooks.lookup(codes))
        return standardized * jnp.asarray(self.scale, jnp.float32) + jnp.asarray(self.center, jnp.float32)

    def predict(self, batch) -> dict[str, jax.Array]:
        """Codes i32 [B, C * 3] and the "reconstruction" f32 [B, F] from them, in the data's units."""
        codes = self.encode(batch)["codes"]
        return {"codes": codes, "reconstruction": self.decode(codes)}

    def evaluate(self, batch) -> dict[str, jax.Array]:
        """Measures with hard codes, per example; `summarize` explains what becomes of them.

        Returns:
          "feature" and "reconstruction" f32 [B, F], standardised (0 for constants); "codes"; "latent" and "quantized"
          f32 [B, D]; "commitment", "informativeness" f32 [B]; "clipped", the share of cut values, and
          "constants_moved", 1 where a constant feature is not its constant, f32 [B].
        """
        rows, layout = batch[_column(batch)].astype(jnp.float32), self.layout()
        target = self._standardized(rows)
        latents = self._encode(target, train=False)
        codes = self.codebooks.nearest(latents)
        quantized = self.codebooks.lookup(codes)
        distance = jnp.sum(jnp.square(latents - quantized), axis=2) / np.array(layout.flat_dims)
        # Of an empty tuple numpy makes floats, which index nothing: hence the dtype.
        constants = np.array(layout.constants, int)
        fixed = jnp.asarray(self.center, jnp.float32)[constants]
        return {
            "feature": target,
            "reconstruction": self._decode(quantized),
            "codes": codes,
            "latent": self._joined(latents),
            "quantized": self._joined(quantized),
            "commitment": jnp.mean(distance, axis=1),
            "informativeness": self._informativeness(quantized, target[:, np.array(layout.singles)]),
            "clipped": jnp.mean(jnp.abs(self._scaled(rows)) > self.clip, axis=1, dtype=jnp.float32),
            "constants_moved": jnp.any(jnp.abs(rows[:, constants] - fixed) > 1e-6 * jnp.abs(fixed), axis=1) * 1.0,
        }

    @nn.nowrap
    def summarize(self, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """Scalars from the arrays of `evaluate` over a data set; see `metrics.summarize`."""
        composite = {"loss": self.composite_loss, "topo_post": self.composite_topo_post,
                     "quality": self.composite_quality}  # fmt: skip
        return metrics.summarize(arrays, self.layout(), composite)

    def _scaled(self, rows: jax.Array) -> jax.Array:
        """Standardised rows; constants are 0."""
        if rows.shape[-1] != self.feature_dim:
            raise UserError(f"rows of {rows.shape[-1]} features; this model is of {self.feature_dim}")
        scale = np.asarray(self.scale)
        # Constants have the scale 0; they become 0 instead of infinite.
        inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
        return (rows.astype(jnp.float32) - jnp.asarray(self.center, jnp.float32)) * jnp.asarray(inverse, jnp.float32)

    def _standardized(self, rows: jax.Array) -> jax.Array:
        return jnp.clip(self._scaled(rows), -self.clip, self.clip)

    def _encode(self, standardized: jax.Array, *, train: bool) -> jax.Array:
        """The vectors of every category-level f32 [B, P, D], padded with zeros."""
        layout = self.layout()
        width = max(layout.flat_dims)
        vectors = []
        for encoder, group in zip(self.encoders, layout.inputs, strict=True):
            for vector in encoder(standardized[:, np.array(group)], train=train):
                vectors.append(jnp.pad(vector, ((0, 0), (0, width - vector.shape[1]))))
        return jnp.stack(vectors, axis=1)

    def _joined(self, vectors: jax.Array) -> jax.Array:
        """Padded vectors f32 [B, P, D] one after the other, without their padding: f32 [B, sum of widths]."""
        return vectors.reshape(len(vectors), -1)[:, self.layout().padded_positions]

    def _features_of_latents(self, seen: jax.Array) -> jax.Array:
        """For every category-level the features of its category f32 [P, B, n], padded with zeros; from f32 [B, S]."""
        layout = self.layout()
        masks = np.stack([np.isin(layout.singles, group) for group in layout.inputs])
        return jnp.repeat(seen * masks[:, None], LEVELS, axis=0)

    def _informativeness(self, vectors: jax.Array, target: jax.Array) -> jax.Array:
        """Mean squared error f32 [B] of telling all features from the vector of one category-level, averaged."""
        guesses = self.partial_decoders(vectors.swapaxes(0, 1), False)
        return jnp.mean(jnp.square(guesses - target), axis=(0, 2))

    def _decode(self, vectors: jax.Array) -> jax.Array:
        """Vectors f32 [B, P, D] -> standardised features f32 [B, F]; constants are 0."""
        layout, seen = self.layout(), self.decoder(self._joined(vectors), False)
        position = {feature: i for i, feature in enumerate(layout.singles)}
        source, sign = np.zeros(self.feature_dim, int), np.zeros(self.feature_dim, np.float32)
        for feature in layout.singles:
            source[feature], sign[feature] = position[feature], 1.0
        for feature, original, direction in layout.duplicates:
            source[feature], sign[feature] = position[original], direction
        return seen[:, source] * sign
