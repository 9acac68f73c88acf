"""Which latent actions a gallery shows: the most frequent codes, or of a model without codes typical deltas."""

from collections.abc import Mapping

import numpy as np

from lapa_jax.nn.quantizers import usage


def typical(arrays: Mapping[str, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` latent actions, the most frequent first.

    Args:
      arrays: of `evaluate` over a data set: "codes" int [M, N], or where there are none "delta" f32 [M, N, Q].

    Returns:
      Sequences of codes int [C, N], or centres of clusters of the deltas f32 [C, N, Q] (k-means, the same ones for the
      same deltas); and the share of the pairs that each stands for, f64 [C].
    """
    if "codes" in arrays:
        latents, often = usage.sequences(arrays["codes"])
        return latents[:count], often[:count] / often.sum()
    # Here and not above: training of codes does without scipy, whose import takes a while.
    from scipy.cluster.vq import kmeans2

    delta = arrays["delta"].astype(np.float64)
    flat = delta.reshape(len(delta), -1)
    wanted = min(count, len(np.unique(flat, axis=0)))
    centres, members = kmeans2(flat, wanted, minit="++", rng=np.random.default_rng(0))
    often = np.bincount(members, minlength=wanted)
    # A cluster that lost all of its members has a centre that no pair is near.
    order = np.argsort(-often, kind="stable")[: int((often > 0).sum())]
    return centres[order].reshape(-1, *delta.shape[1:]).astype(np.float32), often[order] / len(delta)


def names(latents: np.ndarray) -> list[str]:
    """What columns of a gallery are called: by their codes, or by their number."""
    return [usage.name(latent) if latents.ndim == 2 else f"delta {i + 1}" for i, latent in enumerate(latents)]
