"""How a codebook is used: on the device for a batch, and on the host for a whole data set."""

import jax
import jax.numpy as jnp
import numpy as np


def batch_usage(codes: jax.Array, codebook_size: int) -> dict[str, jax.Array]:
    """Usage within one batch.

    Args:
      codes: i32 [B, N].
      codebook_size: K.

    Returns:
      f32 scalars: "perplexity", exp of the entropy of the codes at one position, averaged over positions, in 1..K; and
      "codebook_utilization", the share of the K codes that occur at all.
    """
    share = jnp.mean(jax.nn.one_hot(codes, codebook_size), axis=0)
    entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12)), axis=-1)
    return {"perplexity": jnp.mean(jnp.exp(entropy)), "codebook_utilization": jnp.mean(jnp.any(share > 0, axis=0))}


def perplexity(counts: np.ndarray) -> float:
    """exp of the entropy of a histogram [K]; 1 where one bin holds all."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def dataset_usage(codes: np.ndarray, codebook_size: int) -> dict[str, float]:
    """Usage over a data set.

    Args:
      codes: int [M, N].
      codebook_size: K.

    Returns:
      "perplexity_position_<i>" and their mean "perplexity"; "codebook_utilization", the share of codes that occur
      anywhere; "sequences_used" of the K^N, and "sequence_perplexity"; "largest_code_share", the share of all tokens
      that the most frequent code takes, and "collapse", 1.0 when that is over 90 %.
    """
    counts = np.stack([np.bincount(column, minlength=codebook_size) for column in codes.T])
    per_position = [perplexity(row) for row in counts]
    _, sequences = np.unique(codes, axis=0, return_counts=True)
    largest = float(counts.sum(0).max() / counts.sum())
    return {
        **{f"perplexity_position_{i}": value for i, value in enumerate(per_position)},
        "perplexity": float(np.mean(per_position)),
        "codebook_utilization": float(np.mean(counts.sum(0) > 0)),
        "sequences_used": float(len(sequences)),
        "sequence_perplexity": perplexity(sequences),
        "largest_code_share": largest,
        "collapse": float(largest > 0.9),
    }
