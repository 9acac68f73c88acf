"""Feature vectors with known categories, made of random numbers: what a feature tokenizer can be checked against."""

import numpy as np

FILES = 32
"""Equal parts that the rows are stored in: as many episodes, of which some are held out."""

_SECOND, _NOISE, _COMMON = 0.4, 0.1, 0.3
_OUTLIERS, _FAR = 1e-4, 50.0


def planted_features(rows: int, seed: int, categories: int = 8) -> tuple[np.ndarray, dict]:
    """Rows of features in which categories are planted, among features that make finding them hard.

    Each category has two factors of its own. A feature is plus or minus the first, plus -0.4 to 0.4 of the second, plus
    noise of 0.1 (standard deviations), for every other feature bent by tanh, in a unit and with an offset of its own
    over six orders of magnitude. First factors share a little (correlation 0.09). One number in 10,000 is
    50 times too large. Two features are constant, three are copies of others in other units, two belong to nobody.

    Args:
      rows: how many.
      seed: decides everything.
      categories: how many, each of 4 to 9 features.

    Returns:
      float32[rows, F], in random order of the features, and the truth: {"categories": the category of each feature, -1
      where it has none, "constants": [...], "duplicates": [[feature, other], ...], "loners": [...]}.
    """
    rng = np.random.default_rng(seed)
    common, columns, owner = rng.normal(size=rows), [], []
    for category in range(categories):
        first = np.sqrt(1 - _COMMON**2) * rng.normal(size=rows) + _COMMON * common
        second = rng.normal(size=rows)
        for _ in range(rng.integers(4, 10)):
            parts = rng.choice([-1, 1]) * first + rng.uniform(-_SECOND, _SECOND) * second
            columns.append(parts + _NOISE * rng.normal(size=rows))
            owner.append(category)
    columns = [np.tanh(0.7 * column) if i % 2 else column for i, column in enumerate(columns)]
    outlying = rng.random((len(columns), rows)) < _OUTLIERS
    columns = [np.where(far, _FAR * column, column) for far, column in zip(outlying, columns)]
    copied = rng.choice(len(columns), 3, replace=False)
    columns += [rng.normal(size=rows) for _ in range(2)] + [-columns[i] for i in copied] + [np.zeros(rows)] * 2
    kinds = [-1, -1, *(owner[i] for i in copied), -1, -1]
    return _mixed_up(rng, np.stack(columns, axis=1), np.array(owner + kinds), copied)


def _mixed_up(rng, columns: np.ndarray, owner: np.ndarray, copied: np.ndarray) -> tuple[np.ndarray, dict]:
    """Features in other units and in another order."""
    count = columns.shape[1]
    unit = 10.0 ** rng.uniform(-3, 3, count)
    columns = (columns + rng.uniform(-5, 5, count)) * unit
    order = rng.permutation(count)
    place = np.argsort(order)
    first = count - 7
    return columns[:, order].astype(np.float32), {
        "categories": owner[order].tolist(),
        "loners": sorted(place[first : first + 2].tolist()),
        "duplicates": sorted(sorted((int(place[first + 2 + i]), int(place[c]))) for i, c in enumerate(copied)),
        "constants": sorted(place[first + 5 :].tolist()),
    }
