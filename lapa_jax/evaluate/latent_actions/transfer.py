"""Whether codes mean the same elsewhere: the codes of clip A are applied to the first frame of clip B.

The prediction is encoded again with that first frame. If codes say what is done and not where or with what, the codes
of A come back, and they say A's action. This is `cycle_consistency` across scenes. Without codes it is the deltas that
come back, more or less.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from lapa_jax.models.probe import CODES_PENALTY, probe, probe_delta
from lapa_jax.models.tokenizers.laq.metrics import delta_r2

PAIRS = 512


def measure(tokenizer, batches: Iterable[Mapping[str, np.ndarray]], limit: int = PAIRS) -> dict[str, float]:
    """The metrics of transfer.

    Args:
      tokenizer: a `LatentActionTokenizer` of images.
      batches: of held-out pairs, with "frames", "episode_id", "mask" and perhaps "net_action".
      limit: how many pairs at most.

    Returns:
      "transfer_consistency", the share of A's codes that come back, and "transfer_chance", the share of them that B's
      own pair has anyway; without codes "transfer_delta_r2" and "transfer_delta_chance", `delta_r2` of the deltas that
      come back and of B's own; with actions "transfer_action_r2": a ridge from codes or deltas to actions is fitted on
      pairs of even episodes as they are, and scored on what comes back from odd ones, as `action_probe_r2` is on their
      own codes.
      Empty where the pairs are of one episode, or most of them.
    """
    rows = gather(batches, limit)
    partner = partners(rows["episode_id"])
    if partner is None:
        return {}
    frames = rows["frames"]
    codes, first = tokenizer.encode(frames), frames[partner, 0]
    predicted = np.clip(tokenizer.decode(first, codes), 0, 1)
    again = tokenizer.encode(np.stack([first.astype(np.float32) / 255, predicted], axis=1))
    if tokenizer.codebook_size is None:
        metrics = {"transfer_delta_r2": delta_r2(again, codes),
                   "transfer_delta_chance": delta_r2(codes[partner], codes)}  # fmt: skip
    else:
        metrics = {"transfer_consistency": float((again == codes).mean()),
                   "transfer_chance": float((codes[partner] == codes).mean())}  # fmt: skip
    if "net_action" in rows:
        score = action_r2(codes, again, rows["net_action"], rows["episode_id"], tokenizer.codebook_size)
        metrics |= {} if score is None else {"transfer_action_r2": score}
    return metrics


def partners(episodes: np.ndarray) -> np.ndarray | None:
    """For each row int[M] the number of one of another episode, each once; None where that cannot be."""
    order = np.argsort(episodes, kind="stable")
    most = int(np.unique(episodes, return_counts=True)[1].max())
    # With more than half of the pairs from one episode some would have to meet their own.
    if 2 * most > len(episodes):
        return None
    partner = np.empty(len(episodes), np.int64)
    # Sorted by episode and moved by the size of the largest one, no pair meets its own episode.
    partner[order] = np.roll(order, -most)
    return partner


def action_r2(codes, again, actions: np.ndarray, episodes: np.ndarray, size: int | None) -> float | None:
    """R² on the odd episodes' codes `again` of a ridge that was fitted on the even episodes' `codes`, int[M, N] of
    `size` codes, or deltas f32[M, N, Q] where that is None."""
    even = episodes % 2 == 0
    used = np.where(even.reshape(-1, *[1] * (codes.ndim - 1)), codes, again)
    if size is None:
        result = probe_delta(used, actions, episodes)
    else:
        result = probe(np.eye(size)[used].reshape(len(used), -1), actions, episodes, CODES_PENALTY)
    return None if result is None else result.r2


def gather(batches: Iterable[Mapping[str, np.ndarray]], limit: int) -> dict[str, np.ndarray]:
    """The first pairs of batches, without padding: "frames", "episode_id" and, where there is one, "net_action"."""
    kept: dict[str, list[np.ndarray]] = {}
    count = 0
    for batch in batches:
        real = batch["mask"] > 0
        for name in ("frames", "episode_id", "net_action"):
            if name in batch:
                kept.setdefault(name, []).append(batch[name][real])
        count += int(real.sum())
        if count >= limit:
            break
    return {name: np.concatenate(parts)[:limit] for name, parts in kept.items()}
