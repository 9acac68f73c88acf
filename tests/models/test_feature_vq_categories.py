import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.core.errors import UserError
from lapa_jax.models.tokenizers.feature_vq import categories
from lapa_jax.sample.planted import planted_features


def of_groups(sizes, rows=600, seed=0, second=0.3):
    """Features in groups with a factor each; the factors are independent."""
    rng = np.random.default_rng(seed)
    columns = []
    for size in sizes:
        factor, other = rng.normal(size=(2, rows))
        for _ in range(size):
            columns.append(rng.choice([-1, 1]) * factor + rng.uniform(-second, second) * other)
    return np.stack(columns, 1) + 0.1 * rng.normal(size=(rows, len(columns)))


def partition(groups):
    return {frozenset(group) for group in groups}


SETS = [(4000, 0, 8), (4000, 1, 8), (640, 2, 4), (1000, 3, 3), (2000, 4, 12)]


@pytest.mark.parametrize(("rows", "seed", "count"), SETS)
def test_planted_categories_constants_duplicates_and_loners_are_found(rows, seed, count):
    features, truth = planted_features(rows, seed, count)
    found = categories.discover(features)
    labels = np.full(features.shape[1], -2)
    for label, group in enumerate(found.groups):
        labels[list(group)] = label
    owned = np.array(truth["categories"]) >= 0
    assert categories.adjusted_rand_index(np.array(truth["categories"])[owned], labels[owned]) > 0.95
    assert sorted(found.constants) == truth["constants"]
    assert sorted(sorted(pair[:2]) for pair in found.duplicates) == truth["duplicates"]
    assert set(truth["loners"]) <= set(found.orphans)
    assert found.orthogonality < 0.25
    everything = sorted([i for group in found.groups for i in group] + list(found.constants))
    assert everything == list(range(features.shape[1])), "no feature is lost"


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.permutations(list(range(17))))
def test_permuting_flipping_and_rescaling_features_permutes_the_categories(seed, order):
    rows = of_groups([4, 6, 5], seed=seed % 50)
    rows = np.concatenate([rows, rows[:, :1] * -3 + 1, np.ones((len(rows), 1))], axis=1)
    rng = np.random.default_rng(seed)
    changed = (rows * rng.choice([-1, 1], 17) * 10.0 ** rng.uniform(-4, 4, 17) + rng.normal(size=17))[:, order]
    before, after = categories.discover(rows), categories.discover(changed)
    place = {feature: i for i, feature in enumerate(order)}
    assert partition([[place[i] for i in group] for group in before.groups]) == partition(after.groups)
    assert {place[i] for i in before.constants} == set(after.constants)
    assert after.orthogonality == pytest.approx(before.orthogonality, abs=1e-6)
    assert {frozenset(place[i] for i in pair[:2]) for pair in before.duplicates} == partition(
        pair[:2] for pair in after.duplicates
    )


def test_it_is_a_function_of_its_arguments():
    rows = of_groups([5, 5, 5])
    first, second = categories.discover(rows), categories.discover(rows.copy())
    assert first.groups == second.groups and first.silhouette == second.silhouette
    np.testing.assert_array_equal(first.center, second.center)


def test_constant_features_give_no_nan_and_all_constant_is_refused():
    """Error (g) of the reference: the correlation of a constant is 0 / 0."""
    rows = of_groups([4, 4])
    rows[:, 2] = 7.25
    rows[:, 5] = np.float32(1e8) + np.random.default_rng(0).choice([0.0, 4.0], len(rows))  # below a float32 step
    found = categories.discover(rows)
    assert found.constants == (2, 5)
    for values in (found.correlation, found.center, found.scale):
        assert np.isfinite(values).all()
    assert found.center[2] == 7.25 and found.scale[2] == 0
    with pytest.raises(UserError, match="all 3 features are constant"):
        categories.discover(np.ones((10, 3)))


def test_features_that_do_not_group_are_one_category_not_two_arbitrary_ones():
    """Error (g) of the reference: where every cut has features that stand alone it takes K = 2."""
    alone = np.random.default_rng(0).normal(size=(500, 4))
    assert categories.discover(alone).groups == ((0, 1, 2, 3),)
    single = categories.discover(of_groups([5]) @ np.eye(5)[:, :3])
    assert single.groups == ((0, 1, 2),) and single.orthogonality == 0


def test_one_feature_of_nobody_does_not_change_what_the_others_form():
    """The reference refuses every K with a singleton; here the singleton joins the category it resembles most."""
    rows = of_groups([5, 6, 4], rows=2000)
    stranger = np.random.default_rng(1).normal(size=(2000, 1)) + 0.15 * rows[:, 7:8]
    found = categories.discover(np.concatenate([rows, stranger], 1))
    expected = [list(range(5)), [*range(5, 11), 15], list(range(11, 15))]
    assert partition(found.groups) == partition(expected)
    assert found.orphans == (15,)


@pytest.mark.parametrize("seed", range(6))
def test_the_cut_is_the_best_of_all_by_brute_force(seed):
    """Average linkage and silhouettes written out over all pairs."""
    rng = np.random.default_rng(seed)
    correlation = np.abs(np.corrcoef(of_groups([3, 4, 3], rows=60, seed=seed, second=1.0).T + rng.normal(size=60)))
    distance = 1 - correlation
    np.fill_diagonal(distance, 0)
    clusters, best = [[i] for i in range(10)], (-np.inf, None)
    while len(clusters) > 1:
        pairs = [(np.mean([distance[i, j] for i in a for j in b]), x, y)
                 for x, a in enumerate(clusters) for y, b in enumerate(clusters) if x < y]  # fmt: skip
        _, x, y = min(pairs)
        clusters = [c for i, c in enumerate(clusters) if i not in (x, y)] + [clusters[x] + clusters[y]]
        if 2 <= sum(len(c) >= 2 for c in clusters):
            best = max(best, (brute_silhouette(distance, clusters), -len(clusters), partition(clusters)))
    labels, score = max(categories.cuts(distance, 2, range(2, 51)), key=lambda cut: cut[1])
    assert score == pytest.approx(best[0])
    assert partition([np.flatnonzero(labels == label) for label in np.unique(labels)]) == best[2]


def brute_silhouette(distance, clusters):
    widths = []
    for cluster in clusters:
        for i in cluster:
            if len(cluster) < 2:
                widths.append(0.0)
                continue
            a = np.mean([distance[i, j] for j in cluster if j != i])
            b = min(np.mean([distance[i, j] for j in other]) for other in clusters if other is not cluster)
            widths.append((b - a) / max(a, b))
    return np.mean(widths)


def test_categories_that_are_orthogonal_enough_come_first():
    """Two pairs of tight groups that correlate by half: the silhouette wants four categories, the target two."""
    rng = np.random.default_rng(0)
    shared = np.repeat(rng.normal(size=(2000, 2)), 2, axis=1)
    factors = 0.75 * shared + 0.66 * rng.normal(size=(2000, 4))
    rows = np.repeat(factors, 4, axis=1) + 0.1 * rng.normal(size=(2000, 16))
    assert len(categories.discover(rows, orthogonality_target=0.9).groups) == 4
    found = categories.discover(rows)
    assert partition(found.groups) == partition([range(8), range(8, 16)])
    assert found.orthogonality < 0.25
    none = categories.discover(rows, orthogonality_target=1e-9)
    assert len(none.groups) == 4 and none.orthogonality > 0.25, "where none is, the silhouette decides alone"


def test_the_number_of_categories_can_be_given_and_bounded():
    rows = of_groups([5, 5, 5, 5])
    assert len(categories.discover(rows, count=2).groups) == 2
    assert len(categories.discover(rows, count=1).groups) == 1
    assert len(categories.discover(rows, max_clusters=3).groups) <= 3
    with pytest.raises(UserError, match="num_categories 9 cannot be had"):
        categories.discover(rows, count=9)


def test_given_groups_are_kept_without_their_constants():
    rows = of_groups([3, 3])
    rows[:, 1] = 1.0
    found = categories.discover(rows, groups=((5, 4, 3), (0, 1, 2)))
    assert found.groups == ((0, 2), (3, 4, 5)) and found.duplicates == ()


@pytest.mark.parametrize(("groups", "message"), [(((0, 1), (2,)), "leave out feature 3"),
                                                 (((0, 1, 2), (2, 3)), "feature 2 twice"),
                                                 (((0, 1), (2, 3, 4)), "there are 4")])  # fmt: skip
def test_groups_that_are_none_are_refused(groups, message):
    with pytest.raises(UserError, match=message):
        categories.discover(of_groups([4]), groups=groups)


def test_numbers_that_are_not_finite_are_refused_with_their_place():
    rows = of_groups([3])
    rows[7, 1] = np.nan
    with pytest.raises(UserError, match="feature 1 is nan in row 7"):
        categories.discover(rows)


def test_outliers_change_neither_scale_nor_categories():
    rows = of_groups([5, 5, 5], rows=4000)
    wild = rows.copy()
    rng = np.random.default_rng(0)
    wild[rng.random(rows.shape) < 5e-4] *= 1e5
    clean, dirty = categories.discover(rows), categories.discover(wild)
    np.testing.assert_allclose(dirty.scale, clean.scale, rtol=0.1)  # the wild ones still count as 10 deviations
    assert clean.groups == dirty.groups
    assert np.abs(np.corrcoef(wild.T)[0, 1:5]).max() < 0.5, "plain correlation would see nothing"


def test_what_mostly_stands_still_is_no_outlier():
    """A gripper that is open nine times out of ten has a median absolute deviation of 0."""
    rng = np.random.default_rng(0)
    gripper = (rng.random(1000) < 0.1).astype(float)
    rare = (rng.random(1000) < 0.002).astype(float)
    moving = np.where(rng.random(1000) < 0.3, rng.normal(size=1000), 1e-4 * rng.normal(size=1000))
    rows = np.stack([gripper, rare, moving, rng.normal(size=1000)], 1)
    center, scale, pulled = categories.robust_scaling(rows)
    np.testing.assert_array_equal(pulled, rows)
    np.testing.assert_allclose(center, rows.mean(0))
    np.testing.assert_allclose(scale, rows.std(0))


def test_orthogonality_is_the_largest_correlation_of_aligned_centroids():
    rows = of_groups([4, 3], rows=500)
    rows[:, 4:] += 0.5 * rows[:, [0]] * np.sign(np.corrcoef(rows.T)[4, 4:])
    rows[:, 1] *= -1  # a sign must not cancel
    standard = (rows - rows.mean(0)) / rows.std(0)
    correlation = np.corrcoef(rows.T)
    groups = ((0, 1, 2, 3), (4, 5, 6))
    centroids = []
    for group in groups:
        medoid = group[np.argmax(np.abs(correlation[np.ix_(group, group)]).sum(0))]
        signs = np.sign(correlation[medoid, list(group)])
        centroids.append((standard[:, list(group)] * signs).mean(1))
    expected = abs(np.corrcoef(*centroids)[0, 1])
    assert expected > 0.2
    assert categories.orthogonality(correlation, groups) == pytest.approx(expected, abs=1e-9)


def test_adjusted_rand_index():
    """Values of the definition, counted over pairs."""
    first, second = np.array([0, 0, 0, 1, 1, 2]), np.array([5, 5, 1, 1, 1, 2])
    both = same_a = same_b = 0
    for i in range(6):
        for j in range(i):
            a, b = first[i] == first[j], second[i] == second[j]
            both, same_a, same_b = both + (a and b), same_a + a, same_b + b
    expected = same_a * same_b / 15
    assert categories.adjusted_rand_index(first, second) == pytest.approx(
        (both - expected) / ((same_a + same_b) / 2 - expected)
    )
    assert categories.adjusted_rand_index(first, first + 3) == 1
    rng = np.random.default_rng(0)
    assert abs(categories.adjusted_rand_index(rng.integers(0, 5, 2000), rng.integers(0, 5, 2000))) < 0.02
