"""Which codes are used and what they go with: counts over code arrays, in numpy."""

from collections.abc import Sequence

import numpy as np

from lapa_jax.nn.quantizers.usage import dataset_usage, perplexity


def histogram(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """How often each code occurs at each position: int64 `[N, K]` from int `[M, N]`."""
    return np.stack([np.bincount(column, minlength=codebook_size) for column in codes.T])


def sequences(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct code sequences, most frequent first (ties in code order): int `[S, N]` and counts `[S]`."""
    found, counts = np.unique(codes, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return found[order], counts[order]


def summarize(codes: np.ndarray, codebook_size: int) -> dict:
    """Code usage of a data set, as JSON values.

    Args:
      codes: int `[M, N]`.
      codebook_size: K.

    Returns:
      What `dataset_usage` tells, "steps" (M), "histogram" (N lists of K counts), "most_frequent_sequence" and its share
      of the steps, "most_frequent_share".
    """
    found, often = sequences(codes)
    return {
        **dataset_usage(codes, codebook_size),
        "steps": len(codes),
        "histogram": histogram(codes, codebook_size).tolist(),
        "most_frequent_sequence": found[0].tolist(),
        "most_frequent_share": float(often[0] / len(codes)),
    }


def places(codes: np.ndarray, sizes: Sequence[int], names: Sequence[str] = ()) -> list[dict]:
    """Code usage at each place of rows of codes, as JSON values.

    Args:
      codes: int `[M, N]`. sizes: how many codes there are at each place. names: of the places; numbered if empty.

    Returns:
      For each place "name", "size", "used" and "dead" (codes that occur, and that do not), "utilization" (used / size),
      "perplexity" (effective number of codes), "rows" (M).
    """
    found = []
    for i, (size, column) in enumerate(zip(sizes, codes.T, strict=True)):
        counts = np.bincount(column, minlength=size)
        used = int((counts > 0).sum())
        about = {"name": names[i] if names else f"place {i}", "size": int(size), "rows": len(codes)}
        about |= {"used": used, "dead": int(size) - used, "utilization": used / size}
        found.append({**about, "perplexity": perplexity(counts)})
    return found


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
