"""Points in the plane: what maps of codes and codebooks show."""

import importlib.util

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean

PROJECTIONS = ("pca", "tsne")


def project(points: np.ndarray, projection: str) -> tuple[np.ndarray, str]:
    """Two coordinates f[M, 2] of points f[M, D], and in words how they were found.

    Args:
      points: the rows. projection: one of `PROJECTIONS`: "pca", principal components, or "tsne", t-SNE (van der Maaten
        and Hinton 2008), which needs the extra "tsne".

    Raises:
      UserError: the extra is not installed.
    """
    check_projection(projection)
    if projection == "pca":
        centered = points - points.mean(0)
        _, _, axes = np.linalg.svd(centered, full_matrices=False)
        return centered @ axes[:2].T, "The plane is that of the two largest principal components."
    from sklearn.manifold import TSNE

    # A neighbourhood of 30 rows is usual, and must be smaller than their number. A fixed seed, so that a report that is
    # drawn again looks the same.
    flat = TSNE(perplexity=min(30, (len(points) - 1) / 3), init="pca", random_state=0).fit_transform(points)
    return flat, "The plane is t-SNE's: neighbours are kept, distances are not."


def check_projection(projection: str) -> None:
    """Refuses a projection that does not exist, or whose package is not installed."""
    if projection not in PROJECTIONS:
        raise UserError(f"--projection {projection} does not exist{did_you_mean(projection, PROJECTIONS)}")
    if projection == "tsne" and importlib.util.find_spec("sklearn") is None:
        raise UserError("--projection tsne needs scikit-learn: pip install 'lapa_jax[tsne]', or leave it out for pca")
