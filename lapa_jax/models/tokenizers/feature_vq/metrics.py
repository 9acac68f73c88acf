"""Metrics of a feature tokenizer from the arrays of `evaluate` over a data set. Plain numpy and scipy, on the host."""

from collections.abc import Mapping

import numpy as np

from lapa_jax.models.tokenizers.feature_vq.categories import correlations, orthogonality
from lapa_jax.models.tokenizers.feature_vq.layout import LEVELS, TOPO_WEIGHTS, Layout
from lapa_jax.nn.quantizers.usage import largest_shares, perplexity

WEIGHTS = {"reconstruction": 1.0, "commitment": 0.5, "orthogonality": 0.1, "informativeness": 0.1, "topographic": 0.45}
"""Weights of the losses in "loss", which "composite" uses; the defaults of the config. They stay when the config's
change, so that runs with different ones are still compared by one measure."""

TOPO_ROWS = 384
"""Rows between which distances are compared: 73,536 pairs."""


def summarize(arrays: Mapping[str, np.ndarray], layout: Layout, composite: Mapping[str, float]) -> dict[str, float]:
    """Scalars of a data set.

    Args:
      arrays: the arrays of `feature_vq.Model.evaluate`, over all examples (padding removed).
      layout: of the model.
      composite: {metric: its weight in "composite"}.

    Returns:
      "mse" of the standardised features, "quality": 1 - mse within [0, 1], and "quality_worst_category".
      "codebook_utilization": the share of all codes that occur, and the same per level; "perplexity", the mean over
        codebooks, "perplexity_share", that of perplexity / size; "largest_code_share_category_<c>_level_<l>",
        "largest_code_share" and "collapse", see `nn.quantizers.usage.largest_shares`.
      "orthogonality": the largest |correlation| of two categories' centroids; "latent_orthogonality", the root of the
        mean squared correlation between latents of different categories.
      "topo_pre" and "topo_post": Spearman's correlation of distances between features and latents, and between latents
        and codes, averaged over latents; "topo": between all features and all codes.
      "loss_<name>" of the five losses, "loss", their sum by `WEIGHTS`, and "composite" (higher is better), the sum of
        others by the given weights.
      "clipped": share of the values that were cut; "constants_moved": of rows in which a constant feature is another.
    """
    error = np.square(arrays["feature"] - arrays["reconstruction"])
    mse = float(error[:, layout.varying].mean())
    # A mean over all features hides a small category that is lost altogether.
    worst = max(float(error[:, list(group)].mean()) for group in layout.groups)
    result = {
        "mse": mse,
        "quality": float(np.clip(1 - mse, 0, 1)),
        "quality_worst_category": float(np.clip(1 - worst, 0, 1)),
        **usage(arrays["codes"], layout),
        **_orthogonality(arrays, layout),
    }
    topo, topo_loss = _topographic(arrays, layout)
    losses = {
        "reconstruction": float(error[:, layout.singles].mean()),
        "commitment": float(arrays["commitment"].mean()),
        "orthogonality": result["latent_orthogonality"] ** 2,
        "informativeness": float(arrays["informativeness"].mean()),
        "topographic": topo_loss,
    }
    result |= topo | {f"loss_{name}": value for name, value in losses.items()}
    result["loss"] = sum(WEIGHTS[name] * value for name, value in losses.items())
    result["composite"] = sum(weight * result[name] for name, weight in composite.items())
    return result | {name: float(arrays[name].mean()) for name in ("clipped", "constants_moved")}


def usage(codes: np.ndarray, layout: Layout) -> dict[str, float]:
    """How the codebooks are used, see `summarize`: codes int [N, categories x levels]."""
    sizes = np.array(layout.flat_sizes)
    counts = [np.bincount(column, minlength=size) for column, size in zip(codes.T, sizes, strict=True)]
    used = np.array([np.sum(count > 0) for count in counts])
    effective = np.array([perplexity(count) for count in counts])
    per_level = [used[i::LEVELS].sum() / sizes[i::LEVELS].sum() for i in range(LEVELS)]
    return {
        "codebook_utilization": float(used.sum() / sizes.sum()),
        **{f"utilization_level_{i}": float(share) for i, share in enumerate(per_level)},
        "perplexity": float(effective.mean()),
        "perplexity_share": float(np.mean(effective / sizes)),
        **largest_shares({"category_{}_level_{}".format(*divmod(i, LEVELS)): row for i, row in enumerate(counts)}),
    }


def distances(x: np.ndarray) -> np.ndarray:
    """Euclidean distances between the rows of [n, D], each pair once."""
    # scipy is imported where it is needed: loading a model should not wait for it.
    from scipy.spatial.distance import pdist

    return pdist(x.astype(np.float64))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, with mean ranks for equal values; 0 where one side is constant."""
    from scipy.stats import rankdata

    return pearson(rankdata(a), rankdata(b))


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; 0 where one side is constant."""
    a, b = a - a.mean(), b - b.mean()
    energy = np.sum(a * a) * np.sum(b * b)
    return float(np.sum(a * b) / np.sqrt(energy)) if energy > 0 else 0.0


def _orthogonality(arrays, layout: Layout) -> dict[str, float]:
    apart = layout.owner[:, None] != layout.owner
    squares = np.square(_correlation(arrays["latent"]))[apart]
    return {
        "orthogonality": orthogonality(_correlation(arrays["feature"]), layout.inputs),
        "latent_orthogonality": float(np.sqrt(squares.mean())) if apart.any() else 0.0,
    }


def _correlation(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    std = x.std(0)
    return correlations((x - x.mean(0)) / np.where(std > 0, std, 1.0), std > 0)


def _topographic(arrays, layout: Layout) -> tuple[dict[str, float], float]:
    """The three correlations, and the loss (Pearson's) on the same rows."""
    feature, latent, code = (arrays[name][:TOPO_ROWS] for name in ("feature", "latent", "quantized"))
    before, after, loss = [], [], []
    for i, (start, end) in enumerate(layout.spans):
        # All levels of a category are made from the same features.
        near = distances(feature[:, layout.inputs[i // LEVELS]])
        middle, far = distances(latent[:, start:end]), distances(code[:, start:end])
        before.append(spearman(near, middle))
        after.append(spearman(middle, far))
        loss.append(np.dot(TOPO_WEIGHTS, (1 - pearson(near, middle), 1 - pearson(middle, far))))
    whole = spearman(distances(feature[:, layout.singles]), distances(code))
    return {"topo_pre": float(np.mean(before)), "topo_post": float(np.mean(after)), "topo": whole}, float(np.mean(loss))
