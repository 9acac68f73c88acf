"""Vector quantisation with a straight-through gradient (VQ-VAE, van den Oord et al. 2017, arXiv 1711.00937).

The codes follow the data by one of two ways, never both: by the gradient of the codebook loss (equation 3 there), or as
exponential moving averages of the vectors that chose them (appendix A.1), with Laplace-smoothed counts.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.nn.quantizers.codebook import COLLECTION, INITS, kmeans, nearest_code, safe_norm
from lapa_jax.nn.quantizers.replacement import NOISE

DISTANCES = ("l2", "cosine")
UPDATES = ("gradient", "ema")
EPSILON = 1e-5  # of the Laplace smoothing


def straight_through(x: jax.Array, replacement: jax.Array) -> jax.Array:
    """Exactly `replacement` forward; backward the gradient goes to `x` as if it had been returned."""
    return jax.lax.stop_gradient(replacement) + (x - jax.lax.stop_gradient(x))


def unit(x: jax.Array) -> jax.Array:
    """`x` at length 1 over the last axis; zero stays zero."""
    return x / jnp.maximum(safe_norm(x), 1e-12)


class VQ(nn.Module):
    """A codebook, or one for each position. All arithmetic is float32, whatever the model computes in.

    Variables, with P = `positions`: under "gradient" the parameter "codebook" f32 [P, K, D]. Under "ema", in the
    mutable collection "codebook", "codes" f32 [P, K, D], and the moving averages "counts" f32 [P, K], how many vectors
    of a batch choose a code, and "sums" f32 [P, K, D], their sum; "age" i32 [P, K], updates since a code was last
    replaced. Under jit the batch is the global one: every device holds the same codes.

    A moving average is `sums / smoothed`, where `smoothed = (counts + eps) / (N + K eps) N` and N is the sum of all
    counts. A code that nothing chose in a batch keeps its value to the bit: its average is unchanged, and the smoothing
    would draw it to zero as its count falls.

    Attributes:
      size: K, codes of a codebook.
      distance: "l2", or "cosine": inputs and codes are scaled to length 1 first, so what comes out has length 1, and
        both losses and averages are of these unit vectors.
      update: "gradient" (weigh the loss "codebook") or "ema" (weigh "commitment" alone).
      decay: "ema": share of the averages that one training pass keeps.
      positions: 1 for one codebook that all positions share, or N for one each.
      codebook_init: "data" makes the codes the k-means centres of the batch at initialisation; "normal" draws them from
        N(0, 1).
      dead_share: "ema": a code is dead when its smoothed count is under this share of the mean, N / K, whatever the
        size of batch and codebook; it becomes a random vector of the batch (rng stream "noise"), with a count of N / K
        and the sum that belongs to it, so that it stays where it was put. 0 never replaces.
      dead_age: "ema": training passes that a new or replaced code has before it can be dead.
    """

    size: int
    distance: str = "l2"
    update: str = "ema"
    decay: float = 0.99
    positions: int = 1
    codebook_init: str = "data"
    dead_share: float = 0.0
    dead_age: int = 100

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that cannot work, with what to change."""
        for field, choices in (("distance", DISTANCES), ("update", UPDATES), ("codebook_init", INITS)):
            if (value := getattr(self, field)) not in choices:
                raise UserError(f"{field} is '{value}'{did_you_mean(value, choices)}")
        if self.size < 2 or self.positions < 1:
            raise UserError(f"a codebook of size {self.size} for {self.positions} positions; "
                            "at least 2 codes and 1 position are needed")
        if not 0 <= self.decay < 1:
            raise UserError(f"the decay of a codebook is {self.decay}; give at least 0 and less than 1, such as 0.99")
        if not 0 <= self.dead_share < 1 or self.dead_age < 1:
            raise UserError(f"dead_share is {self.dead_share} and dead_age {self.dead_age}; give a share of the mean "
                            "use in [0, 1), such as 0.1, and at least 1 update")
        if self.dead_share and self.update != "ema":
            raise UserError("dead_share replaces codes that are moving averages; set it to 0 or update to 'ema'")

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None, *, train: bool):
        """Quantises.

        Args:
          x: [B, N, D]; with `positions` over 1, N is `positions`.
          mask: [B, N], 0 for padding: coded, but absent from losses, metrics, averages and replacements. None is all.
          train: update moving averages.

        Returns:
          The codes' vectors f32 [B, N, D], whose gradient goes to x; the codes i32 [B, N]; the losses f32 [B]
          "codebook", which moves codes only (zero under "ema"), and "commitment", which moves x only, both mean squared
          differences over positions and features; and f32 scalars: "perplexity" and "codebook_utilization" of the
          batch, means over codebooks, "residual_ratio", the length of x - code relative to that of x, and under "ema"
          "codes_replaced", how many dead codes were replaced.
        """
        x = self._scaled(x.astype(jnp.float32))
        valid = jnp.ones(x.shape[:2], bool) if mask is None else mask > 0
        vectors, used = self._grouped(jax.lax.stop_gradient(x)), self._grouped(valid)
        codebook = self._codebook(vectors, used)
        codes = jax.vmap(nearest_code)(vectors, jax.lax.stop_gradient(codebook))
        chosen = self._ungrouped(_rows(codebook, codes), x.shape[0])
        metrics = self._metrics(vectors, codes, codebook, used)
        if self.update == "ema":
            replaced = jnp.zeros(())
            if train and not self.is_initializing():
                replaced = self._average(vectors, codes, used)
            metrics["codes_replaced"] = replaced
        error = {"codebook": jnp.square(jax.lax.stop_gradient(x) - chosen),
                 "commitment": jnp.square(x - jax.lax.stop_gradient(chosen))}  # fmt: skip
        if self.update == "ema":
            error["codebook"] = jnp.zeros_like(error["codebook"])
        weight = valid / jnp.maximum(jnp.sum(valid, 1, keepdims=True), 1)
        losses = {name: jnp.sum(weight * jnp.mean(value, -1), 1) for name, value in error.items()}
        return straight_through(x, chosen), self._ungrouped(codes, x.shape[0]), losses, metrics

    def nearest(self, x: jax.Array) -> jax.Array:
        """The codes i32 [B, N] of vectors [B, N, D]; nothing is counted."""
        codes = jax.vmap(nearest_code)(self._grouped(self._scaled(x.astype(jnp.float32))), self.vectors())
        return self._ungrouped(codes, x.shape[0])

    def lookup(self, codes: jax.Array) -> jax.Array:
        """Codes i32 [B, N] -> their vectors f32 [B, N, D]."""
        return self._ungrouped(_rows(self.vectors(), self._grouped(codes)), codes.shape[0])

    def vectors(self) -> jax.Array:
        """The codebooks f32 [P, K, D], of length 1 under "cosine"."""
        if self.update == "ema":
            return self.get_variable(COLLECTION, "codes")
        return self._scaled(self.get_variable("params", "codebook"))

    def _scaled(self, x: jax.Array) -> jax.Array:
        return unit(x) if self.distance == "cosine" else x

    def _grouped(self, x: jax.Array) -> jax.Array:
        """[B, N, ...] -> [P, vectors of one codebook, ...]."""
        if self.positions == 1:
            return x.reshape(1, -1, *x.shape[2:])
        if x.shape[1] != self.positions:
            raise UserError(f"{x.shape[1]} vectors for codebooks at {self.positions} positions; the two must agree")
        return x.swapaxes(0, 1)

    def _ungrouped(self, x: jax.Array, batch: int) -> jax.Array:
        return x.reshape(batch, -1, *x.shape[2:]) if self.positions == 1 else x.swapaxes(0, 1)

    def _codebook(self, vectors: jax.Array, used: jax.Array) -> jax.Array:
        """The codebooks; at initialisation they are made here, and with them the averages."""
        groups, _, width = vectors.shape

        def start(rng):
            if self.codebook_init == "normal":
                return self._scaled(jax.random.normal(rng, (groups, self.size, width)))
            centres = jax.vmap(lambda rng, v, u: kmeans(rng, repeat_valid(v, u), self.size))
            return self._scaled(centres(jax.random.split(rng, groups), vectors, used))

        if self.update == "gradient":
            return self._scaled(self.param("codebook", start))
        codes = self.variable(COLLECTION, "codes", lambda: start(self.make_rng("params")))
        mean = jnp.maximum(jnp.sum(used, 1, keepdims=True), 1) / self.size
        counts = self.variable(COLLECTION, "counts", lambda: mean * jnp.ones((groups, self.size)))
        self.variable(COLLECTION, "sums", lambda: codes.value * counts.value[..., None])
        self.variable(COLLECTION, "age", jnp.zeros, (groups, self.size), jnp.int32)
        return codes.value

    def _average(self, vectors: jax.Array, codes: jax.Array, used: jax.Array) -> jax.Array:
        """Moves the averages by one batch and replaces dead codes; returns how many."""
        state = {name: self.get_variable(COLLECTION, name) for name in ("codes", "counts", "sums", "age")}
        state = move_averages(state, vectors, codes, used, self.decay, self._scaled)
        replaced = jnp.zeros(())
        if self.dead_share:
            dead = dead_codes(state, self.dead_share, self.dead_age) & jnp.any(used, 1, keepdims=True)
            state = replace_dead(state, dead, vectors, used, self.make_rng("noise"), self._scaled)
            replaced = jnp.sum(dead, dtype=jnp.float32)
        for name, value in state.items():
            self.put_variable(COLLECTION, name, value)
        return replaced

    def _metrics(self, vectors, codes, codebook, used) -> dict[str, jax.Array]:
        hits = count(codes, used, self.size)
        share = hits / jnp.maximum(jnp.sum(hits, 1, keepdims=True), 1)
        entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12)), axis=1)
        chosen = _rows(jax.lax.stop_gradient(codebook), codes)
        residual, length = (jnp.sum(used * safe_norm(v)[..., 0]) for v in (vectors - chosen, vectors))
        return {
            "perplexity": jnp.mean(jnp.exp(entropy)),
            "codebook_utilization": jnp.mean(hits > 0),
            "residual_ratio": residual / jnp.maximum(length, 1e-12),
        }


def count(codes: jax.Array, used: jax.Array, size: int) -> jax.Array:
    """How many of the used vectors chose each code: codes i32 [P, M], used bool [P, M] -> f32 [P, K]."""
    return jnp.sum(jax.nn.one_hot(codes, size) * used[..., None], axis=1)


def smoothed_counts(counts: jax.Array) -> jax.Array:
    """Laplace smoothing of counts [P, K] that keeps their sum."""
    total, size = jnp.sum(counts, axis=1, keepdims=True), counts.shape[1]
    return (counts + EPSILON) / (total + size * EPSILON) * total


def move_averages(state: dict, vectors, codes, used, decay: float, scaled) -> dict:
    """One step of the moving averages of `VQ`; `scaled` is what keeps its vectors at length 1, or the identity."""
    hot = jax.nn.one_hot(codes, state["counts"].shape[1]) * used[..., None]
    hits, sums = jnp.sum(hot, axis=1), jnp.einsum("pmk,pmd->pkd", hot, vectors, precision="highest")
    counts = decay * state["counts"] + (1 - decay) * hits
    sums = decay * state["sums"] + (1 - decay) * sums
    moved = scaled(sums / smoothed_counts(counts)[..., None])
    codes = jnp.where(hits[..., None] > 0, moved, state["codes"])
    return {"codes": codes, "counts": counts, "sums": sums, "age": state["age"] + 1}


def dead_codes(state: dict, dead_share: float, dead_age: int) -> jax.Array:
    """Which codes are dead, bool [P, K]: old enough, and chosen by less than `dead_share` of the mean."""
    mean = jnp.mean(state["counts"], axis=1, keepdims=True)
    return (smoothed_counts(state["counts"]) < dead_share * mean) & (state["age"] >= dead_age)


def replace_dead(state: dict, dead, vectors, used, rng: jax.Array, scaled) -> dict:
    """Dead codes become different random vectors of the batch, a little moved: two may have drawn the same one."""
    groups, size = dead.shape
    pick, jitter = jax.random.split(rng)

    def draw(rng, vectors, used, dead):
        order = jnp.argsort(jnp.where(used, jax.random.uniform(rng, used.shape), 2.0))  # a shuffle, padding at the end
        rank = jnp.cumsum(dead) - 1
        return vectors[order[rank % jnp.maximum(jnp.sum(used), 1)]]

    spread = jnp.mean(jnp.std(state["codes"], axis=1), axis=-1)[:, None, None]
    drawn = jax.vmap(draw)(jax.random.split(pick, groups), vectors, used, dead)
    drawn = scaled(drawn + NOISE * spread * jax.random.normal(jitter, drawn.shape))
    counts = jnp.broadcast_to(jnp.mean(state["counts"], axis=1, keepdims=True), (groups, size))
    return {
        "codes": jnp.where(dead[..., None], drawn, state["codes"]),
        "counts": jnp.where(dead, counts, state["counts"]),
        "sums": jnp.where(dead[..., None], drawn * counts[..., None], state["sums"]),
        "age": jnp.where(dead, 0, state["age"]),
    }


def repeat_valid(vectors: jax.Array, used: jax.Array) -> jax.Array:
    """Vectors [M, D] with the padding (`used` bool [M]) overwritten by repetitions of the others, in order."""
    order = jnp.argsort(~used)  # the sort is stable
    return vectors[order[jnp.arange(len(used)) % jnp.maximum(jnp.sum(used), 1)]]


def _rows(codebooks: jax.Array, codes: jax.Array) -> jax.Array:
    """[P, K, D] and i32 [P, M] -> [P, M, D]."""
    return jax.vmap(lambda codebook, codes: codebook[codes])(codebooks, codes)
