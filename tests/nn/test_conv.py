import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapa_jax.core.errors import UserError
from lapa_jax.nn.conv import ConvSpec, Downsample, GridMaps, code_grid, downsample_specs, valid_lengths
from tests import jitted

HALVING = ConvSpec((3, 3), (2, 2), 1)

# (grid, code length) -> layers, as the official code writes them out case by case.
OFFICIAL = {
    (8, 1): (HALVING, ConvSpec((4, 4), (1, 1), 0)),
    (7, 1): (HALVING, ConvSpec((4, 4), (1, 1), 0)),
    (8, 2): (HALVING, ConvSpec((3, 4), (1, 1), 0)),
    (8, 4): (HALVING, ConvSpec((3, 3), (1, 1), 0)),
    (7, 4): (HALVING, ConvSpec((3, 3), (1, 1), 0)),
    (16, 16): (HALVING, HALVING),
    (14, 16): (HALVING, HALVING),
    (16, 64): (HALVING,),
    (32, 256): (HALVING,),
}


@pytest.mark.parametrize(("side", "length"), OFFICIAL)
def test_official_cases_give_the_official_layers(side, length):
    target = code_grid((side, side), length)
    assert downsample_specs((side, side), target) == OFFICIAL[side, length]


def test_two_codes_stand_upright_and_wide_images_get_wide_grids():
    assert code_grid((8, 8), 2) == (2, 1)
    assert code_grid((4, 8), 2) == (1, 2)
    assert code_grid((4, 16), 4) == (1, 4)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.data())
def test_every_valid_length_is_reached_exactly(rows, columns, data):
    length = data.draw(st.sampled_from(sorted(valid_lengths((rows, columns)))))
    target = code_grid((rows, columns), length)
    assert target[0] * target[1] == length
    size = (rows, columns)
    for spec in downsample_specs(size, target):
        size = tuple((s + 2 * spec.padding - k) // step + 1 for s, k, step in zip(size, spec.kernel, spec.stride))
    assert size == target


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 300))
def test_any_other_length_is_refused_and_the_alternatives_work(rows, columns, length):
    grid = (rows, columns)
    divides = [n for n in (rows * columns, 1) if n in valid_lengths(grid)]
    assert divides == [rows * columns, 1], "one code, and one code per patch, always work"
    if length in valid_lengths(grid):
        return
    with pytest.raises(UserError, match=rf"code_seq_len {length} .* {rows}x{columns} ") as error:
        code_grid(grid, length)
    for other in str(error.value).split(": ")[1].split(", "):
        code_grid(grid, int(other))


@pytest.mark.parametrize(("grid", "target"), [((8, 8), (2, 2)), ((4, 6), (2, 3)), ((4, 4), (4, 4)), ((15, 5), (5, 1))])
def test_the_module_gives_the_target_grid(grid, target):
    module = Downsample(grid, target)
    x = jnp.ones((2, *grid, 3))
    y, params = module.init_with_output(jax.random.key(0), x)
    assert y.shape == (2, *target, 3)
    assert len(params["params"]) == len(downsample_specs(grid, target))


def test_relu_lies_between_the_layers_and_not_after_them():
    module = Downsample((8, 8), (2, 2))
    x = jax.random.normal(jax.random.key(1), (64, 8, 8, 3))
    y, params = module.init_with_output(jax.random.key(0), x)
    assert np.min(y) < 0 < np.max(y)
    doubled = jitted.apply(module, params, -x)
    assert np.abs(doubled + y).max() > 1e-3, "without a non-linearity the stack would be odd"


def test_maps_weigh_every_cell_of_their_own_feature():
    module = GridMaps(2)
    x = jax.random.normal(jax.random.key(1), (1, 2, 3, 4))
    y, params = module.init_with_output(jax.random.key(0), x)
    maps, cells = np.asarray(params["params"]["maps"]), np.asarray(x).reshape(6, 4)
    expected = [[sum(maps[k, c, d] * cells[c, d] for c in range(6)) for d in range(4)] for k in range(2)]
    np.testing.assert_allclose(y[0], expected, rtol=1e-4, atol=1e-6)
