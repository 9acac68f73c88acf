"""Replacement of codes that nothing uses, between optimizer steps.

Three rules (`REPLACEMENTS`), applied at the steps of a schedule to the counts since the last application:

  official  a code is dead when it occurred in fewer than `min_hits` training passes, and becomes a copy of a live code:
            the rule of the official LAQ, whose threshold (a tenth of the batch size, 64) is here a number of its own,
            so that it means the same for every batch size.
  share     a code is dead when fewer than `min_share` of all vectors chose it, and becomes a copy of a live code drawn
            in proportion to its use.
  residual  dead as under "share"; becomes one of the vectors of the last batch that lie farthest from every code.

Copies get noise of 5 % of the codebook's spread. (The official 1e-12 is lost in float32: exact copies, of which only
the first is ever chosen until an optimizer step happens to part them.)
"""

import jax
import jax.numpy as jnp

from lapa_jax.core.errors import UserError

REPLACEMENTS = ("official", "share", "residual", "none")
OFFICIAL_SCHEDULE = ((100, 10), (1000, 100), (5000, 500))
OFFICIAL_MIN_HITS = 7
NOISE = 0.05


def maybe_replace(rule: str, codebook, counts, *, step, rng, schedule, min_hits: int, min_share: float):
    """Applies a rule where the schedule says so.

    Args:
      rule: one of `REPLACEMENTS` but "none".
      codebook: f32 [K, Q].
      counts: the variables "hits", "tokens" and "candidates" of `NSVQ`.
      step: i32, updates done.
      rng: key.
      schedule: see `is_due`.
      min_hits: see above.
      min_share: see above.

    Returns:
      The codebook, the counts (zero again after an inspection), and which rows were replaced, bool [K].
    """
    due = is_due(step, schedule)
    dead = due & dead_codes(rule, counts, min_hits=min_hits, min_share=min_share)
    kept = {**counts, **{name: jnp.where(due, 0, counts[name]) for name in ("hits", "tokens")}}
    return replace(rule, codebook, counts, dead, rng), kept, dead


def check_schedule(schedule) -> None:
    """Raises UserError unless the schedule is `((until, every), ...)` of ascending positive numbers."""
    untils = [0]
    for entry in schedule:
        if len(entry) != 2 or min(entry) < 1 or entry[0] <= untils[-1]:
            raise UserError(f"replacement_schedule is {schedule}; it must be ((until, every), ...) with ascending "
                            f"'until', such as {OFFICIAL_SCHEDULE}")
        untils.append(entry[0])


def is_due(step: jax.Array, schedule) -> jax.Array:
    """Whether the codebook is inspected after `step` updates.

    Args:
      step: i32, updates done.
      schedule: `((until, every), ...)`, ascending: below `until` updates it is due at every multiple of `every`, of the
        first pair that applies; never after the last `until`.
    """
    due, start = jnp.asarray(False), 1
    for until, every in schedule:
        due |= (step >= start) & (step < until) & (step % every == 0)
        start = until
    return due


def dead_codes(rule: str, counts, *, min_hits: int, min_share: float) -> jax.Array:
    """Which codes are dead, bool [K], by the counts that `NSVQ` keeps."""
    if rule == "official":
        return counts["hits"] < min_hits
    return counts["tokens"] < min_share * jnp.sum(counts["tokens"])


def replace(rule: str, codebook: jax.Array, counts, dead: jax.Array, rng: jax.Array) -> jax.Array:
    """The codebook [K, Q] with the dead rows replaced; with no live code at all only noise is added to all."""
    pick, jitter = jax.random.split(rng)
    spread = jnp.std(codebook, axis=0).mean()
    source = _SOURCES[rule](codebook, counts, dead, pick)
    source = jnp.where(jnp.all(dead) & (rule != "residual"), codebook, source)
    noise = NOISE * spread * jax.random.normal(jitter, codebook.shape)
    return jnp.where(dead[:, None], source + noise, codebook)


def _copy_in_order(codebook, counts, dead, rng):
    """The official choice: the first live codes in order; where these are too few, a shuffled repetition of them."""
    size = len(dead)
    order = jnp.argsort(dead)  # live codes first, in order (the sort is stable)
    live = jnp.maximum(size - jnp.sum(dead), 1)
    rank = jnp.cumsum(dead) - 1
    repeated = live * (jnp.sum(dead) // live + 1)
    keys = jnp.where(jnp.arange(size) < repeated, jax.random.uniform(rng, (size,)), jnp.inf)
    shuffled = jnp.argsort(keys)[rank] % live
    return codebook[order[jnp.where(live >= jnp.sum(dead), rank, shuffled)]]


def _copy_by_use(codebook, counts, dead, rng):
    weights = jnp.where(dead, 0, counts["tokens"]).astype(jnp.float32)
    return codebook[jax.random.categorical(rng, jnp.log(jnp.maximum(weights, 1e-9)), shape=(len(dead),))]


def _farthest_vectors(codebook, counts, dead, rng):
    # Which of the far vectors a dead code gets does not depend on its index: neighbours would get the same region.
    return jax.random.permutation(rng, counts["candidates"])


_SOURCES = {"official": _copy_in_order, "share": _copy_by_use, "residual": _farthest_vectors}
