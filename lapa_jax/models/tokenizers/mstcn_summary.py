"""What a data set's worth of `evaluate` arrays says about a two-level action tokenizer. Plain numpy, on the host."""

import numpy as np

from lapa_jax.nn.quantizers.usage import perplexity


def summarize(arrays: dict[str, np.ndarray], sizes: dict[str, int]) -> dict[str, float]:
    """Scalars of a data set, over the steps that exist.

    Args:
      arrays: the arrays of `mstcn.Model.evaluate`, over all examples (padding removed).
      sizes: {"z": |Z|, "q": |Q|}.

    Returns:
      "mse" and "mae", over all dimensions, in normalised units, with "mse_<i>" and "mae_<i>" per dimension.
      "r2_<i>": 1 - squared error over that of predicting the dimension's mean, where it varies; "r2", their mean.
      "perplexity_z", "perplexity_q", "codebook_utilization_z", "codebook_utilization_q" (share of codes that occur);
      "perplexity", that of z; "codebook_utilization", the lower one; "bits_per_step", the entropy of z, from which q
      follows.
      "collapse": 1.0 when one code of a level takes more than 90 % of the steps.
    """
    real = arrays["action_mask"] > 0
    codes = arrays["codes"][real]
    dims = arrays.get("action_dims", np.ones((len(real), arrays["action"].shape[-1])))
    there = np.broadcast_to(dims[:, None], arrays["action"].shape)[real] > 0
    action, guess = (arrays[name][real].astype(np.float64) for name in ("action", "reconstruction"))
    return {**_errors(action, guess, there), **_usage(codes, sizes)}


def _errors(action: np.ndarray, guess: np.ndarray, there: np.ndarray) -> dict[str, float]:
    """Of steps f64 [M, A]; `there` bool [M, A] marks the dimensions that a step's data set has."""
    squared, absolute = np.square(action - guess), np.abs(action - guess)
    result = {"mse": float(squared[there].mean()), "mae": float(absolute[there].mean())}
    scores = []
    for i, rows in enumerate(there.T):
        if not rows.any():
            continue
        result |= {f"mse_{i}": float(squared[rows, i].mean()), f"mae_{i}": float(absolute[rows, i].mean())}
        variance = float(action[rows, i].var())
        if variance > 1e-12:
            scores.append(1 - result[f"mse_{i}"] / variance)
            result[f"r2_{i}"] = scores[-1]
    return result | ({"r2": float(np.mean(scores))} if scores else {})


def _usage(codes: np.ndarray, sizes: dict[str, int]) -> dict[str, float]:
    """Of codes [M, 2]."""
    counts = {level: np.bincount(codes[:, i], minlength=sizes[level]) for i, level in enumerate(("z", "q"))}
    found = {f"perplexity_{level}": perplexity(row) for level, row in counts.items()}
    used = {f"codebook_utilization_{level}": float(np.mean(row > 0)) for level, row in counts.items()}
    largest = max(float(row.max() / row.sum()) for row in counts.values())
    return {
        **found,
        **used,
        "perplexity": found["perplexity_z"],
        "codebook_utilization": min(used.values()),
        "bits_per_step": float(np.log2(found["perplexity_z"])),
        "largest_code_share": largest,
        "collapse": float(largest > 0.9),
    }
