import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.nn.vit import resize_positions


@pytest.mark.parametrize("grid", [(5, 5), (9, 7), (3, 2)])
@pytest.mark.parametrize("antialias", [False, True])
def test_a_constant_stays_and_the_own_grid_is_left_alone(grid, antialias):
    table = np.random.default_rng(0).normal(size=(25, 4)).astype(np.float32)
    got = resize_positions(jnp.asarray(table), grid, antialias=antialias)
    assert got.shape == (grid[0] * grid[1], 4)
    if grid == (5, 5):
        np.testing.assert_array_equal(got, table)
    np.testing.assert_allclose(resize_positions(jnp.full((25, 4), 3.0), grid, antialias=antialias), 3.0, rtol=1e-6)


@pytest.mark.parametrize("grid", [(9, 7), (3, 2)])
def test_with_antialiasing_it_is_the_usual_cubic(grid):
    """jax.image.resize has the other convention's border and parameter; Hugging Face's outputs test that one."""
    table = np.random.default_rng(0).normal(size=(25, 4)).astype(np.float32)
    expected = jax.image.resize(jnp.asarray(table).reshape(5, 5, 4), (*grid, 4), "cubic", antialias=True)
    got = resize_positions(jnp.asarray(table), grid, antialias=True)
    np.testing.assert_allclose(got.reshape(*grid, 4), expected, atol=1e-5)
