"""The image of deltas: a panel for each code position, every pair at its principal components in its code's colour."""

import matplotlib.axes
import numpy as np
import pytest

from lapa_jax.plots import deltas


@pytest.mark.parametrize("width", [1, 5])
def test_each_pair_lies_at_its_principal_components(tmp_path, monkeypatch, width):
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, 4, 300), np.full(300, 2)], 1)
    delta = rng.normal(size=(300, 2, width)) * np.array([1, 4, 2, 1, 1])[:width] + 5
    drawn, scatter = [], matplotlib.axes.Axes.scatter
    monkeypatch.setattr(matplotlib.axes.Axes, "scatter", lambda self, x, y, **how:
                        drawn.append((x, y, how["c"])) or scatter(self, x, y, **how))  # fmt: skip
    path = deltas.maps(tmp_path / "deltas.png", delta, codes)
    assert path.stat().st_size > 3000 and len(drawn) == 2
    for position, (x, y, colours) in enumerate(drawn):
        covariance = np.atleast_2d(np.cov(delta[:, position].T, ddof=0))
        variances = [0, *np.linalg.eigvalsh(covariance)]  # a single number has no second component
        np.testing.assert_allclose([x.var(), y.var()], [variances[-1], variances[-2]], atol=1e-9)
        used = np.unique(codes[:, position])
        assert len(np.unique(colours, axis=0)) == len(used), "a colour for each code"
        for code in used:
            assert len(np.unique(colours[codes[:, position] == code], axis=0)) == 1
