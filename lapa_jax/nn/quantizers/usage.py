"""How a codebook is used: on the device for a batch, and on the host for a whole data set."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.output import COLLAPSED


def batch_usage(codes: jax.Array, codebook_size: int) -> dict[str, jax.Array]:
    """Usage within one batch.

    Args:
      codes: i32 [B, N].
      codebook_size: K.

    Returns:
      f32 scalars: "perplexity", exp of the entropy of the codes at one position, averaged over positions, in 1..K;
      "codebook_utilization_position_<i>", the share of the K codes that occur at a position, and their mean
      "codebook_utilization".
    """
    share = jnp.mean(jax.nn.one_hot(codes, codebook_size), axis=0)
    entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12)), axis=-1)
    used = jnp.mean(share > 0, axis=1)
    return {
        "perplexity": jnp.mean(jnp.exp(entropy)),
        "codebook_utilization": jnp.mean(used),
        **{f"codebook_utilization_position_{i}": value for i, value in enumerate(used)},
    }


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
      "perplexity_position_<i>", their mean "perplexity" and "perplexity_least", the lowest of them;
      "codebook_utilization_position_<i>", the share of the codes that occur at a position, and their mean
      "codebook_utilization"; "sequences_used" of the K^N, and "sequence_perplexity"; and what `largest_shares` tells of
      the positions. A code that every position has of its own says nothing when only one of them varies: so all is
      counted for each position.
    """
    counts = histogram(codes, codebook_size)
    per_position = [perplexity(row) for row in counts]
    used = (counts > 0).mean(1)
    _, sequences = np.unique(codes, axis=0, return_counts=True)
    return {
        **{f"perplexity_position_{i}": value for i, value in enumerate(per_position)},
        "perplexity": float(np.mean(per_position)),
        "perplexity_least": min(per_position),
        **{f"codebook_utilization_position_{i}": float(value) for i, value in enumerate(used)},
        "codebook_utilization": float(used.mean()),
        "sequences_used": float(len(sequences)),
        "sequence_perplexity": perplexity(sequences),
        **largest_shares({f"position_{i}": row for i, row in enumerate(counts)}),
    }


def largest_shares(counts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How much the most frequent code of each code position takes.

    Args:
      counts: {name of a code position, "position_0": histogram [K]}.

    Returns:
      "largest_code_share_<position>", its share of all codes there; "largest_code_share", the largest of these; and
      "collapse", 1.0 when that is over 90 %: one position or more says nothing.
    """
    shares = {name: float(row.max() / row.sum()) for name, row in counts.items()}
    largest = max(shares.values())
    return {
        **{f"largest_code_share_{name}": share for name, share in shares.items()},
        "largest_code_share": largest,
        "collapse": float(largest > COLLAPSED),
    }


def histogram(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """How often each code occurs at each position: int64 `[N, K]` from int `[M, N]`."""
    return np.stack([np.bincount(column, minlength=codebook_size) for column in codes.T])


def sequences(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct code sequences, most frequent first (ties in code order): int `[S, N]` and counts `[S]`."""
    distinct, counts = np.unique(codes, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return distinct[order], counts[order]


def summarize(codes: np.ndarray, codebook_size: int) -> dict:
    """Code usage of a data set, as JSON values.

    Args:
      codes: int `[M, N]`.
      codebook_size: K.

    Returns:
      What `dataset_usage` tells, "steps" (M), "histogram" (N lists of K counts), "most_frequent_sequence" and its share
      of the steps, "most_frequent_share".
    """
    distinct, counts = sequences(codes)
    return {
        **dataset_usage(codes, codebook_size),
        "steps": len(codes),
        "histogram": histogram(codes, codebook_size).tolist(),
        "most_frequent_sequence": distinct[0].tolist(),
        "most_frequent_share": float(counts[0] / len(codes)),
    }


def positions(codes: np.ndarray, sizes: Sequence[int], names: Sequence[str] = ()) -> list[dict]:
    """Code usage at each code position, as JSON values.

    Args:
      codes: int `[M, N]`. sizes: how many codes each position has. names: of the positions; numbered if empty.

    Returns:
      For each position "name", "size", "used" and "dead" (codes that occur, and that do not), "utilization" (used /
      size), "perplexity" (effective number of codes), "largest_share" (of the most frequent code), "rows" (M).
    """
    entries = []
    for i, (size, column) in enumerate(zip(sizes, codes.T, strict=True)):
        counts = np.bincount(column, minlength=size)
        used = int((counts > 0).sum())
        about = {"name": names[i] if names else f"position {i}", "size": int(size), "rows": len(codes)}
        about |= {"used": used, "dead": int(size) - used, "utilization": used / size}
        entries.append({**about, "perplexity": perplexity(counts), "largest_share": float(counts.max() / len(codes))})
    return entries


def name(sequence) -> str:
    """A code sequence as a short label: "3017", or "12-7-0-31" where codes have several digits."""
    digits = [str(int(code)) for code in sequence]
    return ("" if all(len(d) == 1 for d in digits) else "-").join(digits)


def mean_action_per_code(codes: np.ndarray, actions: np.ndarray, codebook_size: int) -> np.ndarray:
    """Mean of the standardised action over the pairs with code k at position i: f32 `[N, K, A]`, NaN where none.

    Args:
      codes: int `[M, N]`.
      actions: f32 `[M, A]`, in any unit; standardised here over the M pairs.
      codebook_size: K.
    """
    standard = (actions - actions.mean(axis=0)) / np.maximum(actions.std(axis=0), 1e-8)
    hot = codes.T[:, :, None] == np.arange(codebook_size)
    sums = np.einsum("imk,ma->ika", hot, standard)
    counts = hot.sum(axis=1)[..., None]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)


def mean_action_per_sequence(codes: np.ndarray, actions: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean action, in its own unit, of the pairs that carry each of the chosen sequences `[C, N]`: f32 `[C, A]`."""
    return np.stack([actions[(codes == sequence).all(axis=1)].mean(axis=0) for sequence in chosen]).astype(np.float32)
