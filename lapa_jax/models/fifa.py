"""FIFA: segments found by gradient descent on their lengths (Souri et al., "Fast Inference for Fully-supervised
temporal Action segmentation", GCPR 2022), over the clusters of a two-level codebook as in HVQ (Spurio et al.,
AAAI 2025).

How likely each cluster is at each step follows from distances to both codebooks. Which clusters follow each other, the
transcript, is not known without labels: here it is the most likely sequence of clusters, found by Viterbi's algorithm
with a cost for each change, so that single odd steps make no segment. FIFA then moves the borders. Everything runs in
float32 on the device, for many episodes at once: padding is masked.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lapa_jax.core.errors import UserError
from lapa_jax.nn.quantizers.vq import unit

FARTHEST = 4.0
"""The distance of a cluster without subclusters: the sum of two cosine distances is never more."""


class Settings(NamedTuple):
    """Attributes:
      temperature: of the softmax over distances; smaller is sharper.
      switch_cost: what a change of cluster costs in the search for the transcript, in nats.
      sharpness: s, of the borders of a plateau, per mean segment length; it grows from the first to the second value.
        (The published 0.1 per frame is 33 per mean segment of the published videos, and a blur over any segment of a
        robot's. Blunt first, borders far off still feel a slope.)
      length_weight: w, of the difference to the expected lengths.
      learning_rate: of Adam.
      iterations: steps of it.
    """

    temperature: float = 0.1
    switch_cost: float = 5.0
    sharpness: tuple[float, float] = (10.0, 100.0)
    length_weight: float = 0.001
    learning_rate: float = 0.1
    iterations: int = 100


DEFAULTS = Settings()


def check(settings: Settings) -> None:
    """Raises UserError for settings that cannot work, with what to change."""
    if not (settings.temperature > 0 and settings.switch_cost >= 0):
        raise UserError(f"temperature is {settings.temperature} and switch_cost {settings.switch_cost}; the first must "
                        "be positive, the second at least 0")
    if not 0 < settings.sharpness[0] <= settings.sharpness[1] or settings.length_weight < 0:
        raise UserError(f"sharpness is {settings.sharpness} and length_weight {settings.length_weight}; give two "
                        "positive numbers, the second not smaller, and at least 0")
    if settings.iterations < 1 or settings.learning_rate <= 0:
        raise UserError(f"iterations is {settings.iterations} and learning_rate {settings.learning_rate}; give at "
                        "least 1 and a positive number")


def cluster_distances(embedding: jax.Array, z: jax.Array, q: jax.Array, hierarchy: jax.Array) -> jax.Array:
    """d2[k] + the mean of d1[v] over the subclusters v of cluster k: cosine distances, 0 to 4.

    d1 are the distances of the embedding to the subclusters, d2 those of its nearest subcluster to the clusters. (The
    mean is over a cluster's own subclusters. Over all of them it would be the same for every cluster, and vanish in the
    softmax: the result would not depend on the embedding.)

    Args:
      embedding: f32 [..., D], of any length.
      z, q: unit vectors f32 [|Z|, D] and [|Q|, D].
      hierarchy: i32 [|Z|], the cluster of each subcluster.

    Returns:
      f32 [..., |Q|]; 4 for a cluster that has no subcluster.
    """
    first = 1 - jnp.einsum("...d,zd->...z", unit(embedding), z, precision="highest")
    second = 1 - jnp.einsum("zd,qd->zq", z, q, precision="highest")[jnp.argmin(first, axis=-1)]
    members = jax.nn.one_hot(hierarchy, len(q))
    count = members.sum(0)
    mean = jnp.einsum("...z,zq->...q", first, members, precision="highest") / jnp.maximum(count, 1)
    return jnp.where(count > 0, second + mean, FARTHEST)


def log_probabilities(distances: jax.Array, temperature: float) -> jax.Array:
    """Distances [..., K] -> log-probabilities of the clusters, f32 [..., K]."""
    return jax.nn.log_softmax(-distances / temperature, axis=-1)


def viterbi(cost: jax.Array, mask: jax.Array, switch_cost: float) -> jax.Array:
    """The labels with the least sum of their costs and of `switch_cost` for every change.

    Args:
      cost: f32 [T, K], of each label at each step.
      mask: f32 [T], 1 for the steps that exist, then 0.

    Returns:
      i32 [T]; behind the last step its label goes on.
    """
    stay = jnp.arange(cost.shape[1])

    def forward(total, step):
        cost, real = step
        # The cheapest label to come from is the same for all labels, since every change costs the same: O(K), not
        # O(K^2), a step.
        best = jnp.argmin(total)
        change = total[best] + switch_cost < total
        came_from = jnp.where(change & real, best, stay)
        return jnp.where(real, jnp.where(change, total[best] + switch_cost, total) + cost, total), came_from

    total, came_from = jax.lax.scan(forward, cost[0] * mask[0], (cost[1:], mask[1:] > 0))

    def back(label, came_from):
        return came_from[label], label

    # Backtracking: the scan runs from the last step to the first, and its final carry is the label of step 0.
    first, rest = jax.lax.scan(back, jnp.argmin(total), came_from, reverse=True)
    return jnp.concatenate([first[None], rest]).astype(jnp.int32)


def plateaus(shares: jax.Array, steps: jax.Array, sharpness: jax.Array, length: int) -> jax.Array:
    """How much each step belongs to each segment.

    M_n(t) = 1 / ((e^(s (t - c - h)) + 1) (e^(s (c - t - h)) + 1)) with the centre c and half the length h of segment n,
    in steps; t is the middle of a step.

    Args:
      shares: f32 [N], the lengths of the segments as shares of the whole.
      steps: how many steps there are, f32.
      sharpness: s, per step.
      length: T, of the padded sequence.

    Returns:
      f32 [N, T].
    """
    t = jnp.arange(length) + 0.5
    half = (shares * steps / 2)[:, None]
    centre = (jnp.cumsum(shares) * steps)[:, None] - half
    # The same as the quotient above, in the form that does not overflow for sharp borders.
    return jax.nn.sigmoid(-sharpness * (t - centre - half)) * jax.nn.sigmoid(-sharpness * (centre - t - half))


def energy(
    shares: jax.Array, cost: jax.Array, expected: jax.Array, mask: jax.Array, sharpness: jax.Array, weight: float
) -> jax.Array:
    """mean_t sum_n cost[t, n] M_n(t) + w sum_n |share_n - expected_n|, of one sequence.

    The third published term, |sum of the shares - 1|, is 0 here: `shares` sum to 1 by construction. As a penalty it
    loses against the first one where a step costs more than 1 nat: lengths shrink until steps are in no segment.

    Args:
      shares, expected: f32 [N], sum 1, 0 for segments that do not exist.
      cost: f32 [T, N], of the segments' clusters at each step (their negative log-probability).
      mask: f32 [T]. sharpness: s, per step. weight: w.
    """
    steps = jnp.maximum(mask.sum(), 1)
    # A segment of length 0 still has a plateau of height 1/4 at its border, hence the factor.
    inside = plateaus(shares, steps, sharpness, len(mask)) * (shares > 0)[:, None]
    observed = jnp.sum(jnp.sum(cost * inside.T, 1) * mask) / steps
    return observed + weight * jnp.sum(jnp.abs(shares - expected))


def optimise(
    cost: jax.Array, start: jax.Array, expected: jax.Array, mask: jax.Array, settings: Settings = DEFAULTS
) -> jax.Array:
    """Adam on the logarithms of the lengths, from `start`, with borders that grow sharp.

    Args:
      cost: f32 [T, N] and mask f32 [T], of one sequence, see `energy`.
      start: f32 [N], the lengths at first, as shares; 0 marks segments that do not exist.
      expected: f32 [N], the lengths that `settings.length_weight` draws to, as shares.

    Returns:
      The lengths f32 [N], as shares.
    """
    real = start > 0
    # The settings count sharpness per mean segment length; `plateaus` takes it per step.
    per_step = jnp.sum(real) / jnp.maximum(mask.sum(), 1)
    blunt, sharp = settings.sharpness
    adam = optax.adam(settings.learning_rate)

    def shares_of(logs):
        return jax.nn.softmax(jnp.where(real, logs, -jnp.inf))

    def step(carry, progress):
        logs, state = carry
        sharpness = blunt * (sharp / blunt) ** progress * per_step
        gradient = jax.grad(
            lambda logs: energy(shares_of(logs), cost, expected, mask, sharpness, settings.length_weight)
        )(logs)
        change, state = adam.update(gradient, state)
        return (logs + change, state), None

    # Entries of segments that do not exist are masked in `shares_of`; here they only have to be finite.
    logs = jnp.log(jnp.where(real, start, 1.0))
    progress = jnp.linspace(0.0, 1.0, settings.iterations)
    (logs, _), _ = jax.lax.scan(step, (logs, adam.init(logs)), progress)
    return shares_of(logs)


def borders(shares: jax.Array, mask: jax.Array) -> jax.Array:
    """Shares [N] -> i32 [N + 1], where each segment begins, and where the last one ends, in whole steps."""
    ends = jnp.rint(jnp.cumsum(shares) * mask.sum()).astype(jnp.int32)
    return jnp.concatenate([jnp.zeros(1, jnp.int32), ends])
