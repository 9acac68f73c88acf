"""What predictions of codes over a data set say about a policy. Plain numpy, on the host."""

from collections.abc import Mapping

import numpy as np


def summarize(arrays: Mapping[str, np.ndarray], codebook_size: int) -> dict[str, float]:
    """Scalars of a data set; examples whose mask is 0 do not count.

    Args:
      arrays: those of `vla.Model.evaluate` over all examples. codebook_size: K.

    Returns:
      "loss": the mean cross-entropy in nats, and "loss_unigram": that of always giving the codes' own frequencies, the
        best that can be done without looking.
      "latent_accuracy", the mean over places, and "latent_accuracy_position_<n>"; "latent_accuracy_top3".
      "latent_accuracy_all": share of examples with every code right.
      "majority_accuracy", "majority_accuracy_top3": of always giving each place's most frequent code(s) of these very
        data, which no policy without eyes can beat; "accuracy_gain": latent_accuracy minus majority_accuracy.
      "predicted_perplexity" and "perplexity": how many codes a place really has in use, predicted and true.
    """
    kept = arrays["latent_mask"] > 0
    codes, predicted, loss, top3 = (arrays[name][kept] for name in ("codes", "predicted", "loss", "top3"))
    if len(codes) == 0:
        return {}
    shares, given = _shares(codes, codebook_size), _shares(predicted, codebook_size)
    right, ranked = (codes == predicted), np.sort(shares, axis=1)
    result = {
        "loss": float(loss.mean()),
        "loss_unigram": float(_entropy(shares).mean()),
        "latent_accuracy": float(right.mean()),
        "latent_accuracy_top3": float(top3.mean()),
        "latent_accuracy_all": float(right.all(axis=1).mean()),
        "majority_accuracy": float(ranked[:, -1].mean()),
        "majority_accuracy_top3": float(ranked[:, -3:].sum(1).mean()),
        "perplexity": float(np.exp(_entropy(shares)).mean()),
        "predicted_perplexity": float(np.exp(_entropy(given)).mean()),
    }
    result["accuracy_gain"] = result["latent_accuracy"] - result["majority_accuracy"]
    return result | {f"latent_accuracy_position_{n}": float(r) for n, r in enumerate(right.mean(axis=0))}


def _shares(codes: np.ndarray, size: int) -> np.ndarray:
    """f64 [N, K]: how often each code occurs at each place."""
    return np.stack([np.bincount(place, minlength=size) / len(codes) for place in codes.T])


def _entropy(shares: np.ndarray) -> np.ndarray:
    """f64 [N], in nats."""
    return -np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), axis=1)
