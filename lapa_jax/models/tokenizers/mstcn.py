"""MS-TCN: two-level discrete codes of action sequences, one pair of codes per step.

An MS-TCN encoder embeds every step of a window of actions; the embedding is quantised to one of many subclusters (Z),
each of which belongs to one of few clusters (Q); an MS-TCN decoder rebuilds the actions from the codes. The scheme is
the HVQ of Spurio et al. (AAAI 2025) with MS-TCN stages (Abu Farha and Gall, CVPR 2019), for actions.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import FILLED, Count, Dtype, FromData, Range, Share
from lapa_jax.core.output import Output
from lapa_jax.models import base, fifa
from lapa_jax.nn.norm import LayerNorm
from lapa_jax.nn.quantizers.usage import largest_shares, perplexity
from lapa_jax.nn.quantizers.vq import VQ, straight_through, unit
from lapa_jax.nn.tcn import MultiStage, check_context, reach, receptive_field


def summarize(arrays: dict[str, np.ndarray], sizes: dict[str, int]) -> dict[str, float]:
    """Scalars of a data set, over the steps that exist.

    Args:
      arrays: the arrays of `mstcn.Model.evaluate`, over all examples (padding removed).
      sizes: {"z": |Z|, "q": |Q|}.

    Returns:
      "mse", "mae", "p99_error" (which 1 % of the absolute errors exceed) and "max_error" (the largest), over all
      dimensions, in normalised units, with "mse_<i>" and so on per dimension.
      "r2_<i>": 1 - squared error over that of predicting the dimension's mean, where it varies; "r2", their mean.
      "perplexity_z", "perplexity_q", "codebook_utilization_z", "codebook_utilization_q" (share of codes that occur);
      "perplexity", that of z; "codebook_utilization", the lower one; "bits_per_step", the entropy of z, from which q
      follows.
      "largest_code_share_z", "largest_code_share_q", "largest_code_share" and "collapse", see `usage.largest_shares`.
    """
    real = arrays["action_mask"] > 0
    codes = arrays["codes"][real]
    dims = arrays.get("action_dims", np.ones((len(real), arrays["action"].shape[-1])))
    present = np.broadcast_to(dims[:, None], arrays["action"].shape)[real] > 0
    action, guess = (arrays[name][real].astype(np.float64) for name in ("action", "reconstruction"))
    return {**_errors(action, guess, present), **_usage(codes, sizes)}


def _errors(action: np.ndarray, guess: np.ndarray, present: np.ndarray) -> dict[str, float]:
    """Of steps f64 [M, A]; `present` bool [M, A] marks the dimensions that a step's data set has."""
    squared, absolute = np.square(action - guess), np.abs(action - guess)
    result = {"mse": float(squared[present].mean()), "mae": float(absolute[present].mean()),
              "p99_error": float(np.percentile(absolute[present], 99)),
              "max_error": float(absolute[present].max())}  # fmt: skip
    scores = []
    for i, rows in enumerate(present.T):
        if not rows.any():
            continue
        result |= {f"mse_{i}": float(squared[rows, i].mean()), f"mae_{i}": float(absolute[rows, i].mean()),
                   f"p99_error_{i}": float(np.percentile(absolute[rows, i], 99)),
                   f"max_error_{i}": float(absolute[rows, i].max())}  # fmt: skip
        variance = float(action[rows, i].var())
        if variance > 1e-12:
            scores.append(1 - result[f"mse_{i}"] / variance)
            result[f"r2_{i}"] = scores[-1]
    return result | ({"r2": float(np.mean(scores))} if scores else {})


def _usage(codes: np.ndarray, sizes: dict[str, int]) -> dict[str, float]:
    """Of codes [M, 2]."""
    counts = {level: np.bincount(codes[:, i], minlength=sizes[level]) for i, level in enumerate(("z", "q"))}
    perplexities = {f"perplexity_{level}": perplexity(row) for level, row in counts.items()}
    used = {f"codebook_utilization_{level}": float(np.mean(row > 0)) for level, row in counts.items()}
    return {
        **perplexities,
        **used,
        "perplexity": perplexities["perplexity_z"],
        "codebook_utilization": min(used.values()),
        "bits_per_step": float(np.log2(perplexities["perplexity_z"])),
        **largest_shares(counts),
    }


PASSED_ON = ("perplexity", "codebook_utilization", "codes_replaced")
"""Metrics of each codebook that are logged, with its letter as a suffix."""


class TwoLevels(nn.Module):
    """Embedding -> nearest subcluster -> nearest cluster of that subcluster. Cosine distance, codes of length 1.

    Both codebooks are moving averages (collection "codebook"), Z of the embeddings, Q of the subclusters' vectors, so
    neither has a gradient. The cluster follows from the subcluster: a code pair says no more than its first number.

    Attributes:
      subclusters, clusters: sizes of the codebooks.
      decoder_input: which vectors go on, "z", "q", or their sum "z+q".
      decay, dead_share, dead_age, codebook_init: of both codebooks, see `nn.quantizers.vq.VQ`.
    """

    subclusters: int
    clusters: int
    decoder_input: str = "z"
    decay: float = 0.8
    dead_share: float = 0.1
    dead_age: int = 20
    codebook_init: str = "data"

    def setup(self):
        self.z, self.q = (self._codebook(size) for size in (self.subclusters, self.clusters))

    @nn.nowrap
    def _codebook(self, size: int) -> VQ:
        return VQ(size, "cosine", "ema", self.decay, codebook_init=self.codebook_init,
                  dead_share=self.dead_share, dead_age=self.dead_age)  # fmt: skip

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that cannot work, with what to change."""
        for size in (self.subclusters, self.clusters):
            self._codebook(size).check()
        if self.clusters > self.subclusters:
            raise UserError(f"clusters {self.clusters} is more than subclusters {self.subclusters}: every subcluster "
                            "belongs to one cluster, so some would stay empty; set clusters to that or less")

    def __call__(self, embedding: jax.Array, mask: jax.Array, *, train: bool) -> dict:
        """Quantises, and with `train` moves the averages.

        The gradient of the decoder reaches the embedding once, past all of the quantisation. The commitment losses pull
        the embedding towards its subcluster and towards its cluster, as if each were all there is: the codes have no
        gradient, and the second codebook sees the subclusters without one.

        Args:
          embedding: f32 [B, T, D]; only its direction counts.
          mask: f32 [B, T], 1 for steps that exist.

        Returns:
          "vectors" f32 [B, T, D], the decoder's input, of size about 1 per feature; "codes" i32 [B, T, 2]; "losses"
          f32 [B], "commitment_z" and "commitment_q", mean squared distances (0 to 4) on the unit sphere; "metrics".
        """
        z, z_codes, losses, z_metrics = self.z(embedding, mask, train=train)
        # The straight-through gradient is applied once, below, past both codebooks.
        hard = jax.lax.stop_gradient(z)
        q, q_codes, _, q_metrics = self.q(hard, mask, train=train)
        direction = unit(embedding)
        # Towards the cluster itself, as `q` was quantised from the subcluster, which has no gradient.
        distance = jnp.sum(jnp.square(direction - jax.lax.stop_gradient(q)), -1)
        real = jnp.maximum(jnp.sum(mask, 1), 1)
        # VQ gives the mean over features; on the unit sphere the sum is the squared distance, 0 to 4.
        named = {"commitment_z": losses["commitment"] * embedding.shape[-1],
                 "commitment_q": jnp.sum(distance * mask, 1) / real}  # fmt: skip
        metrics = {f"{name}_{level}": level_metrics[name]
                   for level, level_metrics in (("z", z_metrics), ("q", q_metrics)) for name in PASSED_ON}  # fmt: skip
        vectors = straight_through(direction, self._combined(hard, q))
        codes = jnp.stack([z_codes, q_codes], -1)
        return {"vectors": vectors * self._scale(embedding), "codes": codes, "losses": named, "metrics": metrics}

    def nearest(self, embedding: jax.Array) -> jax.Array:
        """f32 [B, T, D] -> codes i32 [B, T, 2], (subcluster, cluster); nothing is counted."""
        z = self.z.nearest(embedding)
        return jnp.stack([z, self.hierarchy()[z]], -1)

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Codes i32 [B, T, 2] -> the decoder's input f32 [B, T, D]; of a pair it reads what `decoder_input` names."""
        z, q = self.z.lookup(codes[..., 0]), self.q.lookup(codes[..., 1])
        return self._combined(z, q) * self._scale(z)

    def hierarchy(self) -> jax.Array:
        """The cluster of each subcluster, i32 [|Z|]."""
        return self.q.nearest(self.z.vectors())[0]

    def codebooks(self) -> tuple[jax.Array, jax.Array]:
        """The unit vectors of Z f32 [|Z|, D] and Q f32 [|Q|, D]."""
        return self.z.vectors()[0], self.q.vectors()[0]

    def _combined(self, z: jax.Array, q: jax.Array) -> jax.Array:
        return {"z": z, "q": q, "z+q": z + q}[self.decoder_input]

    @nn.nowrap
    def _scale(self, vectors: jax.Array) -> float:
        """Unit vectors of D features have entries of D^-0.5; a convolution starts best from entries of about 1."""
        return vectors.shape[-1] ** 0.5


KEPT = ("episode_id", "step", "dataset_id", "action_dims")
"""Columns of a batch that `evaluate` returns unchanged."""


def from_data(spec: Mapping, source, seed: int) -> dict:
    """Fills in `action_dim` and `state_dim` (0 where the samples hold no state) from the samples.

    Args:
      spec: the model's fields. source: samples of kind "chunks", or "sequences" without prompts. seed: not needed.

    Raises:
      UserError: the samples do not fit the fields.
    """
    shapes = {name: values.shape[1:] for name, values in source.batch([]).items()}
    if len(shapes.get("action", ())) != 2:
        raise UserError(f"tokenizers.mstcn learns from action windows [T, A], the samples hold {shapes}: set "
                        "data.samples=chunks")
    if len(shapes.get("state", (0,))) != 1:
        raise UserError(f"tokenizers.mstcn reads one state per window, that of its first step, and the samples hold "
                        f"states {list(shapes['state'])}: set data.samples=chunks and data.history=0")
    length, width = shapes["action"]
    if spec.get("context", length) != length:
        raise UserError(f"model.context is {spec['context']} and the samples have {length} steps; set both to the same")
    fields = {"action_dim": width, "state_dim": shapes["state"][0] if "state" in shapes else 0}
    for name, value in fields.items():
        if spec.get(name) not in (None, value):
            raise UserError(f"model.{name} is {spec[name]}, the data have {value}; leave it None")
    return {**spec, **fields}


class Model(base.ActionTokenizer):
    """The action tokenizer.

    Batches hold "action" f32 [B, T, A], scaled to about [-1, 1], and "action_mask" f32 [B, T], 1 where there is one;
    with `state_dim` also "state" f32 [B, S], of the first step; of a mixture "action_dims" f32 [B, A], 1 for dimensions
    that there are. Losses: "reconstruction", the mean squared error over real steps and dimensions, and "commitment_z",
    "commitment_q", see `TwoLevels`.

    Attributes:
      action_dim: A, numbers of an action; None is taken from the data.
      state_dim: S, numbers of a state, or 0 for a tokenizer of actions alone; None is taken from the data. The state
        tells the encoder more to cluster by; the decoder never sees it, so codes decode without one.
      context: T, steps of a window in training; encoding and decoding take any number of steps.
      embed_dim: D, of embeddings and codes.
      width: features within the stages.
      layers: dilated layers of a stage; their reach is bounded by the context, see `tcn.check_context`.
      stages: of the encoder, and of the decoder.
      causal: the codes of a step depend on the actions up to it, and decoded actions on the codes up to theirs: what a
        policy needs whose input are codes of its own past.
      dropout: rate, in the layers.
      subclusters: codes of the fine codebook, z. clusters: codes of the coarse codebook, q.
      decoder_input: which vectors the decoder reads, "z", "q", or their sum "z+q".
      decay: of the codebooks' moving averages. dead_share: a code with under this share of the mean use is replaced.
        dead_age: steps before that may happen. codebook_init: "data", k-means centres of the first batch, or "normal".
      dtype: "float32" or "bfloat16" computation of the stages; parameters, norm and quantisation are float32.
    """

    action_dim: FromData = None
    state_dim: Annotated[int | None, Range(0), FILLED] = 0
    context: Annotated[int, Range(2)] = 10
    embed_dim: Count = 512
    width: Count = 512
    layers: Count = 4
    stages: Count = 2
    causal: bool = False
    dropout: Share = 0.0
    subclusters: Annotated[int, Range(2)] = 128
    clusters: Annotated[int, Range(2)] = 32
    decoder_input: Literal["z", "q", "z+q"] = "z"
    decay: Share = 0.8
    dead_share: Share = 0.1
    dead_age: Count = 20
    codebook_init: Literal["data", "normal"] = "data"
    dtype: Dtype = "float32"

    two_level = True

    def setup(self):
        stack = (self.causal, self.dropout, jnp.dtype(self.dtype))
        self.encoder = MultiStage(self.stages, self.layers, self.width, self.embed_dim, *stack)
        self.norm = LayerNorm()
        self.codes = self._levels()
        self.decoder = MultiStage(self.stages, self.layers, self.width, self.action_dim, *stack)

    @nn.nowrap
    def _levels(self) -> TwoLevels:
        return TwoLevels(self.subclusters, self.clusters, self.decoder_input, self.decay, self.dead_share,
                         self.dead_age, self.codebook_init)  # fmt: skip

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit together, with what to change."""
        check_context(self.layers, self.stages, self.context)
        self._levels().check()

    @property
    def codebook_sizes(self) -> tuple[int, int]:
        """Number of codes at each position of a code pair."""
        return self.subclusters, self.clusters

    @property
    def reach(self) -> tuple[int, int]:
        """How many steps (back, ahead) the codes of a step depend on, where a sequence is long enough."""
        return reach(self.layers, self.stages, causal=self.causal)

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes."""
        batch = {"action": np.zeros((batch_size, self.context, self.action_dim), np.float32),
                 "action_mask": np.ones((batch_size, self.context), np.float32)}  # fmt: skip
        return batch | ({"state": np.zeros((batch_size, self.state_dim), np.float32)} if self.state_dim else {})

    def __call__(self, batch, *, train: bool) -> Output:
        """Losses, metrics and codes i32 [B, T, 2] of a batch; with `train` the codebooks move and dropout acts."""
        mask = batch["action_mask"]
        embedding = self._embed(batch["action"], mask, batch.get("state"), train=train)
        quantized = self.codes(embedding, mask, train=train)
        prediction = self.decoder(quantized["vectors"], mask, train=train)
        error = jnp.square(prediction - batch["action"])
        named = {"reconstruction": _mean(error, mask, batch.get("action_dims")), **quantized["losses"]}
        return Output(losses=named, metrics=quantized["metrics"], codes=quantized["codes"])

    def encode(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Normalised "action" f32 [B, T, A], of any T, and "action_mask" [B, T] -> "codes" i32 [B, T, 2] and
        "embedding" f32 [B, T, D]."""
        embedding = self._embed(batch["action"], batch["action_mask"], batch.get("state"), train=False)
        return {"codes": self.codes.nearest(embedding), "embedding": embedding}

    def decode(self, codes: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Codes i32 [B, T, 2] -> normalised actions f32 [B, T, A], 0 where the mask is."""
        mask = jnp.ones(codes.shape[:2]) if mask is None else mask
        return self.decoder(self.codes.lookup(codes), mask, train=False)

    def predict(self, batch) -> dict[str, jax.Array]:
        """Codes i32 [B, T, 2] of the actions, and the "reconstruction" f32 [B, T, A] from them."""
        mask = batch["action_mask"]
        codes = self.encode(batch)["codes"]
        return {"codes": codes, "reconstruction": self.decode(codes, mask)}

    def evaluate(self, batch) -> dict[str, jax.Array]:
        """Per example "action", "reconstruction" f32 [B, T, A], "codes" i32 [B, T, 2] and "action_mask" f32 [B, T], and
        what the batch has of "episode_id", "step", "dataset_id", "action_dims"."""
        arrays = {"action": batch["action"], "action_mask": batch["action_mask"], **self.predict(batch)}
        return arrays | {name: batch[name] for name in KEPT if name in batch}

    @nn.nowrap
    def summarize(self, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """Scalars from the arrays of `evaluate` over a data set; see `summarize`."""
        sizes = {"z": self.subclusters, "q": self.clusters}
        # Within a window of training nothing further away can be seen, whatever the convolutions reach.
        steps = min(receptive_field(self.layers, self.stages), self.context)
        return {**summarize(arrays, sizes), "receptive_field": float(steps)}

    def vectors(self, codes: jax.Array) -> dict[str, jax.Array]:
        """Codes i32 [B, T, 2] -> "z" and "q" f32 [B, T, D], their vectors in the codebooks, of length 1."""
        z, q = self.codes.codebooks()
        return {"z": z[codes[..., 0]], "q": q[codes[..., 1]]}

    def soft_clusters(self, action: jax.Array, mask: jax.Array, temperature: float) -> jax.Array:
        """The clusters' vectors f32 [B, T, D], weighed by how probable each is at each step (see `fifa`)."""
        likely = jnp.exp(fifa.log_probabilities(self.cluster_distances(action, mask), temperature))
        return jnp.einsum("btq,qd->btd", likely, self.codes.codebooks()[1], precision="highest")

    def hierarchy(self) -> jax.Array:
        """The cluster of each subcluster, i32 [|Z|]."""
        return self.codes.hierarchy()

    def cluster_distances(self, action: jax.Array, mask: jax.Array, state: jax.Array | None = None) -> jax.Array:
        """How far each step is from each cluster, f32 [B, T, |Q|], see `fifa`; "mask" as "action_mask"."""
        embedding = self._embed(action, mask, state, train=False)
        return fifa.cluster_distances(embedding, *self.codes.codebooks(), self.codes.hierarchy())

    def _embed(self, action: jax.Array, mask: jax.Array, state: jax.Array | None, *, train: bool) -> jax.Array:
        """Normalised actions [B, T, A] -> f32 [B, T, D]."""
        if action.ndim != 3 or action.shape[-1] != self.action_dim:
            raise UserError(f"action has shape {action.shape}; [B, T, {self.action_dim}] is expected")
        if (state is None) != (not self.state_dim):
            raise UserError(f"the tokenizer has state_dim {self.state_dim}, and {'no' if state is None else 'a'} state "
                            "came with the actions; give data.fields with the state, or train without it")
        inputs = action.astype(jnp.float32)
        if state is not None:
            # The state is that of the window's first step, and is repeated at every step.
            everywhere = jnp.broadcast_to(state[:, None], (*action.shape[:2], self.state_dim))
            inputs = jnp.concatenate([inputs, everywhere], -1)
        return self.norm(self.encoder(inputs, mask, train=train))


def _mean(error: jax.Array, mask: jax.Array, dims: jax.Array | None) -> jax.Array:
    """Errors [B, T, A] -> f32 [B], the mean over real steps and, where `dims` [B, A] is given, real dimensions."""
    weight = mask[..., None] * (jnp.ones_like(error[:, :1]) if dims is None else dims[:, None])
    return jnp.sum(error * weight, (1, 2)) / jnp.maximum(jnp.sum(weight, (1, 2)), 1)
