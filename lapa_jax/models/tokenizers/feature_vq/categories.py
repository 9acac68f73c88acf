"""Which features of a table belong together: robust scaling, and clustering by correlation. Plain numpy and scipy.

Features are clustered by average linkage on 1 - |correlation|. (Ward's linkage wants Euclidean distances, which these
are not.) Features alone or in too small a cluster are orphans, and join the category that they correlate with most. Of
all cuts of the tree whose categories are as orthogonal as they should be, the one with the best silhouette (Rousseeuw
1987; orphans count 0) is taken; of all cuts, where no cut is.
"""

import dataclasses

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from lapa_jax.core.errors import UserError

DUPLICATE = 1 - 1e-6
"""|correlation| from which on a feature is another one in other units."""

REACH, TAIL = 10.0, 0.005
"""Values beyond 10 robust standard deviations are outliers, unless more than half a per cent of the rows come half as
far."""


@dataclasses.dataclass(frozen=True)
class Categories:
    """What is known of F features.

    Attributes:
      groups: the categories, each the sorted indices of its features, duplicates included; in order of their first.
      constants: features that never change; they are in no group.
      duplicates: (feature, the one it copies, +1 or -1); in the group of the one it copies.
      orphans: features of no cluster, which joined the closest group.
      center, scale: f64[F], see `robust_scaling`; a constant has scale 0.
      correlation: f64[F, F] of the features with outliers pulled in; 0 for constants.
      silhouette: of the clusters, in [-1, 1]; 0 where there is one group.
      orthogonality: the largest |correlation| of two groups' centroids, duplicates not counted.
    """

    groups: tuple[tuple[int, ...], ...]
    constants: tuple[int, ...]
    duplicates: tuple[tuple[int, int, int], ...]
    orphans: tuple[int, ...]
    center: np.ndarray
    scale: np.ndarray
    correlation: np.ndarray
    silhouette: float
    orthogonality: float


def discover(
    rows: np.ndarray, *, count: int | None = None, max_clusters: int = 50, min_features: int = 3,
    orthogonality_target: float = 0.25, groups=None,
) -> Categories:  # fmt: skip
    """Finds the categories of features.

    Args:
      rows: f[N, F], finite.
      count: how many categories; None lets the silhouette choose, from 2 to `max_clusters`.
      max_clusters: see `count`.
      min_features: a smaller cluster (duplicates not counted) is no category.
      orthogonality_target: what `orthogonality` should stay under.
      groups: categories that are already known, of which only constants are taken out; None finds them.

    Raises:
      UserError: fewer than 2 rows, nothing that changes, a number that is not finite, or categories that cannot be had.
    """
    rows = _checked(rows)
    center, scale, pulled = robust_scaling(rows)
    constants = np.flatnonzero(scale == 0)
    if len(constants) == rows.shape[1]:
        raise UserError(f"all {rows.shape[1]} features are constant: there is nothing to encode")
    correlation = correlations((pulled - center) / np.where(scale > 0, scale, 1.0), scale > 0)
    if groups is None:
        duplicates = find_duplicates(correlation)
        copies = {feature for feature, _, _ in duplicates}
        single = np.array([i for i in np.flatnonzero(scale > 0) if i not in copies])
        limits = count, max_clusters, min_features, orthogonality_target
        clusters, orphans, score = cluster(correlation[np.ix_(single, single)], *limits)
        groups = _with_duplicates([single[list(group)] for group in clusters], duplicates)
        orphans = tuple(int(single[i]) for i in orphans)
    else:
        duplicates, orphans, score = (), (), 0.0
        groups = _known_groups(groups, rows.shape[1], constants)
    copies = {feature for feature, _, _ in duplicates}
    originals = [[i for i in group if i not in copies] for group in groups]
    return Categories(
        groups, tuple(map(int, constants)), duplicates, orphans, center, scale, correlation, score,
        orthogonality(correlation, originals),
    )  # fmt: skip


def _checked(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or len(rows) < 2:
        raise UserError(f"categories are found from rows of numbers, at least 2; got an array of shape {rows.shape}")
    if not np.isfinite(rows).all():
        row, feature = np.argwhere(~np.isfinite(rows))[0]
        raise UserError(f"feature {feature} is {rows[row, feature]} in row {row}; features must be finite")
    return rows


def robust_scaling(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation per feature after outliers have been pulled in.

    An outlier is further from the median than `REACH` times 1.4826 median absolute deviations, and twice as far as all
    but `TAIL` of the rows on the further side: the median deviation alone would call it an outlier whenever something
    moves that mostly stands still.

    Args:
      rows: f64[N, F].

    Returns:
      center f64[F], scale f64[F] (0 where a feature changes by no more than the rounding of float32), and the rows
      with their outliers moved to the limits. Center and scale follow any shift and rescaling of a feature.
    """
    low, high = rows.min(0), rows.max(0)
    # Data are stored as float32: what changes by less than two of its steps is a constant with rounding.
    step = 2 * np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(np.float32)).astype(np.float64)
    constant = high - low < step
    median = np.median(rows, 0)
    # 1.4826: the median absolute deviation of a normal distribution times this is its standard deviation.
    spread = 1.4826 * np.median(np.abs(rows - median), 0)
    tail = np.abs(np.quantile(rows, (TAIL, 1 - TAIL), axis=0) - median).max(0)
    limit = np.maximum(REACH * spread, 2 * tail)
    limit = np.where(limit > 0, limit, np.inf)  # what nearly always stands still moves by more than its quantiles say
    pulled = np.clip(rows, median - limit, median + limit)
    center, scale = pulled.mean(0), pulled.std(0)
    return np.where(constant, median, center), np.where(constant, 0.0, scale), pulled


def correlations(standard: np.ndarray, varies: np.ndarray) -> np.ndarray:
    """Pearson correlations f64[F, F] of columns of mean 0 and standard deviation 1; 0 where a column does not vary."""
    correlation = np.clip(standard.T @ standard / len(standard), -1.0, 1.0)
    # A matrix product need not be symmetric to the last bit, and the clustering below asks for symmetry.
    correlation = np.where(varies[:, None] & varies[None, :], (correlation + correlation.T) / 2, 0.0)
    np.fill_diagonal(correlation, varies.astype(np.float64))
    return correlation


def find_duplicates(correlation: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """(feature, the first one it copies, sign) of every feature that is an earlier one in other units."""
    duplicates, copies = [], set()
    for feature in range(len(correlation)):
        same = np.flatnonzero(np.abs(correlation[feature, :feature]) > DUPLICATE)
        same = [int(i) for i in same if i not in copies]
        if same:
            copies.add(feature)
            duplicates.append((feature, same[0], 1 if correlation[feature, same[0]] > 0 else -1))
    return tuple(duplicates)


def cluster(correlation: np.ndarray, count: int | None, max_clusters: int, min_features: int, target: float):
    """Groups of features by average linkage, silhouette and orthogonality.

    Args:
      correlation: f64[F, F], of features that vary and are no duplicates.
      count, max_clusters, min_features, target: as of `discover`.

    Returns:
      The groups (tuples of indices), the orphans among them, and the silhouette. One group where features do not part.
    """
    features = len(correlation)
    everything = ([tuple(range(features))], (), 0.0)
    if count == 1 or (count is None and features < 2 * min_features):
        return everything
    distance = 1 - np.abs(correlation)
    np.fill_diagonal(distance, 0.0)
    allowed = range(2, max_clusters + 1) if count is None else (count,)
    candidates = sorted(cuts(distance, min_features, allowed), key=lambda cut: -cut[1])
    if not candidates:
        if count is None:
            return everything
        raise UserError(f"num_categories {count} cannot be had: no cut of {features} features has so many clusters of "
                        f"at least {min_features}; give fewer, a smaller min_features, or None")
    for labels, score in candidates:
        groups, orphans = _adopt(correlation, labels, min_features)
        if orthogonality(correlation, groups) < target:
            return groups, orphans, score
    return *_adopt(correlation, candidates[0][0], min_features), candidates[0][1]


def _adopt(correlation: np.ndarray, labels: np.ndarray, min_features: int):
    """The groups of a cut, after the features of small clusters have joined the closest; and those features."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    large = [group for group in members if len(group) >= min_features]
    orphans = sorted(int(i) for group in members if len(group) < min_features for i in group)
    groups = [list(group) for group in large]
    for orphan in orphans:
        groups[int(np.argmax([np.abs(correlation[orphan, group]).mean() for group in large]))].append(orphan)
    return sorted(tuple(sorted(map(int, group))) for group in groups), tuple(orphans)


def cuts(distance: np.ndarray, min_features: int, allowed) -> list[tuple[np.ndarray, float]]:
    """The cuts of the average-linkage tree.

    Args:
      distance: f64[F, F]. min_features: members that a category must have. allowed: how many categories a cut may have.

    Returns:
      Of each cut that is allowed, from few clusters to many, a label int[F] for each feature and the silhouette.
    """
    tree = hierarchy.linkage(squareform(distance, checks=False), "average")
    features = len(distance)
    labels, sums = np.arange(features), distance.copy()  # sums[i, k]: distances from feature i to cluster k
    sizes, column = np.ones(features, int), dict(enumerate(range(features)))
    allowed_cuts = []
    for step, (first, second) in enumerate(tree[:, :2].astype(int)):
        keep, gone = column.pop(int(first)), column.pop(int(second))
        column[features + step] = keep
        # Average linkage merges two clusters a step, so that the sums of distances follow by one addition of columns.
        sums[:, keep] += sums[:, gone]
        sizes[keep] += sizes[gone]
        sizes[gone] = 0
        labels[labels == gone] = keep
        if np.sum(sizes >= min_features) in allowed:
            allowed_cuts.append((labels.copy(), _silhouette(sums, sizes, labels, min_features)))
    return allowed_cuts[::-1]


def _silhouette(sums: np.ndarray, sizes: np.ndarray, labels: np.ndarray, min_features: int) -> float:
    """Mean over all features of (b - a) / max(a, b): a to the own cluster, b to the nearest other one."""
    alive = np.flatnonzero(sizes)
    own_cluster = np.searchsorted(alive, labels)
    mean = sums[:, alive] / sizes[alive]
    rows = np.arange(len(labels))
    # The distance of a feature to itself is 0 and not counted, hence size - 1.
    inner = sums[rows, labels] / np.maximum(sizes[labels] - 1, 1)
    mean[rows, own_cluster] = np.inf
    outer = mean.min(1)
    width = (outer - inner) / np.maximum(np.maximum(outer, inner), 1e-12)
    return float(np.mean(np.where(sizes[labels] >= max(min_features, 2), width, 0.0)))


def orthogonality(correlation: np.ndarray, groups) -> float:
    """The largest |correlation| between the centroids of two groups; 0 for a single group.

    A centroid is the mean of a group's standardised features, each with the sign of its correlation to the one that
    the group resembles most: without that, features of opposite sign would cancel.
    """
    # Centroids are never formed: their covariance follows from the features' correlations and these weights.
    weights = np.zeros((len(groups), len(correlation)))
    for weight, group in zip(weights, groups):
        within = correlation[np.ix_(group, group)]
        medoid = int(np.argmax(np.abs(within).sum(1)))
        weight[list(group)] = np.where(within[medoid] < 0, -1.0, 1.0)
    covariance = weights @ correlation @ weights.T
    std = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
    between = np.abs(covariance / std[:, None] / std)
    return float(between[np.triu_indices(len(groups), 1)].max(initial=0.0))


def adjusted_rand_index(first: np.ndarray, second: np.ndarray) -> float:
    """How far two labellings int[F] agree: 1 for the same partition, 0 on average by chance (Hubert, Arabie 1985)."""
    _, first = np.unique(first, return_inverse=True)
    _, second = np.unique(second, return_inverse=True)
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)
    pairs = lambda n: float(np.sum(n * (n - 1) / 2))  # noqa: E731
    both, a, b = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    # Agreement of random labellings with the same cluster sizes, which the index subtracts.
    expected = a * b / max(pairs(np.array(len(first))), 1.0)
    largest = (a + b) / 2
    return 1.0 if largest == expected else (both - expected) / (largest - expected)


def _with_duplicates(groups, duplicates) -> tuple[tuple[int, ...], ...]:
    copies: dict[int, list[int]] = {}
    for feature, original, _ in duplicates:
        copies.setdefault(original, []).append(feature)
    full = [sorted([int(i) for i in group] + [c for i in group for c in copies.get(int(i), ())]) for group in groups]
    return tuple(sorted(map(tuple, full)))


def _known_groups(groups, features: int, constants: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Groups of the config without constants; a feature that is missing, twice there or out of range is refused."""
    listed = [int(i) for group in groups for i in group]
    for feature in listed:
        if not 0 <= feature < features:
            raise UserError(f"groups name feature {feature}; there are {features}, counted from 0")
        if listed.count(feature) > 1:
            raise UserError(f"groups name feature {feature} twice; a feature belongs to one category")
    if missing := sorted(set(range(features)) - set(listed) - set(map(int, constants))):
        raise UserError(f"groups leave out feature {missing[0]}, which is not constant; put it into one of them")
    left = [tuple(sorted(int(i) for i in group if i not in set(constants))) for group in groups]
    return tuple(sorted(group for group in left if group))
