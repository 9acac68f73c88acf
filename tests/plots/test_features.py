"""Pictures of feature tokenizers: every file is drawn, for one category and many, and the plane is the right one."""

import sys

import numpy as np
import pytest
from PIL import Image

from lapa_jax.core.errors import UserError
from lapa_jax.models.tokenizers.feature_vq.layout import Layout
from lapa_jax.plots import codebooks, projections
from lapa_jax.plots import features as feature_pictures


def made(groups, constants=(), duplicates=(), rows=60):
    """A layout, the arrays of an evaluation, and padded codebooks."""
    features = sum(map(len, groups)) + len(constants)
    sizes, dims = ((7, 5, 4),) * len(groups), ((4, 4, 8),) * len(groups)
    layout = Layout(features, groups, constants, duplicates, dims, sizes)
    rng = np.random.default_rng(0)
    feature = rng.normal(size=(rows, features))
    feature[:, list(constants)] = 0
    arrays = {
        "feature": feature, "reconstruction": feature + 0.1 * rng.normal(size=feature.shape),
        "latent": rng.normal(size=(rows, 16 * len(groups))),
        "codes": np.stack([rng.integers(0, size - 1, rows) for size in layout.flat_sizes], 1),
    }  # fmt: skip
    return layout, arrays, rng.normal(size=(len(layout.flat_sizes), 7, 8))


MANY = tuple((2 * c, 2 * c + 1) for c in range(9))
CASES = [made(((0, 2, 3), (1, 4)), constants=(5,), duplicates=((3, 0, -1),)), made(((0, 1, 2),)), made(MANY)]


@pytest.mark.parametrize("case", range(3))
def test_every_picture_is_drawn(case, tmp_path):
    layout, arrays, books = CASES[case]
    names = [f"feature {i}" for i in range(layout.features)]
    feature_pictures.category_heat_map(tmp_path / "a.png", arrays["feature"], layout, names)
    feature_pictures.level_utilization(tmp_path / "b.png", arrays["codes"], layout)
    words = codebooks.codebook_maps(tmp_path / "c.png", arrays, books, layout)
    feature_pictures.category_quality(tmp_path / "d.png", arrays["feature"], arrays["reconstruction"], layout)
    for name in "abcd":
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 150 and np.asarray(image.convert("L")).std() > 5, name
    assert ("3 categories are left out" in words) == (case == 2), "nothing is left out silently"


def test_the_heat_map_is_ordered_by_category(tmp_path, monkeypatch):
    layout, arrays, _ = CASES[0]
    shown = []
    figure = type(feature_pictures.Figure().subplots())
    draw = figure.imshow
    monkeypatch.setattr(figure, "imshow", lambda self, table, **how: shown.append(table) or draw(self, table, **how))
    feature_pictures.category_heat_map(tmp_path / "a.png", arrays["feature"], layout, list("abcdef"))
    order = [0, 2, 3, 1, 4]
    np.testing.assert_allclose(shown[0], np.abs(np.corrcoef(arrays["feature"][:, order].T)), atol=1e-9)


def test_the_plane_holds_the_most_variance():
    points = np.random.default_rng(0).normal(size=(200, 5)) * [0.1, 3, 0.2, 1, 0.3] + 7
    flat, words = projections.project(points, "pca")
    assert "principal components" in words
    np.testing.assert_allclose(np.sort(flat.var(0)), np.sort(np.linalg.eigvalsh(np.cov(points.T, ddof=0))[-2:]))


def test_tsne_keeps_neighbours():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(10 * cluster, 0.1, (20, 6)) for cluster in range(3)])
    flat, words = projections.project(points, "tsne")
    assert "t-SNE" in words and flat.shape == (60, 2)
    distances = np.linalg.norm(flat[:, None] - flat, axis=2) + np.diag(np.full(60, np.inf))
    assert (distances.argmin(1) // 20 == np.arange(60) // 20).all(), "the nearest is one of the same cluster"


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"needs scikit-learn: pip install 'lapa_jax\[tsne\]'"):
        projections.project(np.eye(3), "tsne")
    with pytest.raises(UserError, match="--projection tsnee does not exist; did you mean 'tsne'"):
        projections.project(np.eye(3), "tsnee")
