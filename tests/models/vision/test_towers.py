"""SigLIP and DINOv2 against Hugging Face's on tiny random models, at the size of their positions and at others, some of
which the patch does not divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from lapa_jax.models.released import hugging_face
from lapa_jax.models.vision import dinov2, siglip
from tests import jitted
from tests.golden.imported import imported

NAMES = ("siglip", "siglip_border", "dinov2", "dinov2_registers")


@pytest.fixture(scope="module", params=NAMES)
def golden(request, tmp_path_factory):
    return imported(request.param, tmp_path_factory.mktemp(request.param) / "out")


def sizes(expected):
    return [name.removeprefix("image_") for name in expected if name.startswith("image_")]


def test_features_are_those_of_hugging_face(golden):
    model, variables, expected = golden
    found = sizes(expected)
    assert len(found) > 1  # the size of the positions, and those that interpolate them
    assert any(int(side) % model.patch for size in found for side in size.split("x"))
    for size in found:
        got = jax.jit(model.apply)(variables, expected[f"image_{size}"])
        # the two kinds of gelu differ by 1e-4 here
        np.testing.assert_allclose(got, expected[f"last_{size}"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_layer_before_the_last_has_neither_the_last_block_nor_the_norm(name, tmp_path):
    model, variables, expected = imported(name, tmp_path / "out", "--layer", "-2")
    assert "norm_out" not in variables["params"]
    assert {len(leaf) for leaf in jax.tree.leaves(variables["params"]["layers"])} == {model.depth - 1}
    for size in sizes(expected):
        got = jax.jit(model.apply)(variables, expected[f"image_{size}"])
        np.testing.assert_allclose(got, expected[f"before_{size}"], atol=1e-4, rtol=0)


def test_floats_leading_axes_and_options_of_the_computation_keep_the_features(tmp_path):
    model, variables, expected = imported("dinov2_registers", tmp_path / "out")
    images = expected["image_20x20"]
    pairs = np.stack([images, images[:, ::-1]], 1).astype(np.float32) / 255
    got = jax.jit(model.apply)(variables, pairs)
    assert got.shape == (1, 2, 25, 16)
    np.testing.assert_allclose(got[:, 0], expected["last_20x20"], atol=1e-4)
    half = jax.jit(model.clone(dtype="bfloat16", remat="full").apply)(variables, images)
    assert half.dtype == jnp.bfloat16 and np.abs(half.astype(np.float32) - expected["last_20x20"]).max() < 0.3


@pytest.mark.parametrize(
    ("model", "count", "dim"),
    [(siglip.Model(), 412_442_352, 1152), (dinov2.Model(), 304_367_616, 1024),
     (dinov2.Model(registers=4), 304_371_712, 1024)],
)  # fmt: skip
@pytest.mark.parametrize("side", [224, 336])
def test_the_defaults_are_the_released_models_on_one_grid(model, count, dim, side):
    config_lib.check(model)
    image = jnp.zeros((1, side, side, 3))
    features, shapes = jax.eval_shape(lambda k: model.init_with_output(k, image), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    assert features.shape == (1, (side // 14) ** 2, dim)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 13}, "13x13 pixels is smaller than a patch of 14"),
        ({"heads": 5}, "dim 1152 is not a multiple of the heads, 5"),
        ({"layer": -3}, "give -1"),
        ({"layer": -2, "depth": 1}, "layer is -2 with 1 blocks"),
        ({"registers": 4}, "this model has none"),
        ({"dtype": "bfloat"}, "did you mean 'bfloat16'"),
    ],
)
def test_fields_that_cannot_work_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        config_lib.check(siglip.Model(**fields))


def test_the_border_that_no_patch_covers_changes_nothing():
    model = siglip.Model(image_size=47, dim=8, depth=1, heads=2, hidden=8)
    image = np.random.default_rng(0).integers(0, 256, (1, 47, 47, 3)).astype(np.uint8)
    features, variables = jax.jit(model.init_with_output)(jax.random.key(0), image)
    assert features.shape == (1, 9, 8)
    image[:, 42:] = image[:, :, 42:] = 0
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, image), features)
    np.testing.assert_allclose(jitted.apply(model, variables, image[:, :42, :42]), features, atol=1e-5)
    with pytest.raises(UserError, match="42x13 pixels is smaller than a patch of 14"):
        model.apply(variables, jnp.zeros((1, 42, 13, 3)))


def test_so400m_for_384_pixels_has_27_by_27_patches(tmp_path):
    """As `config.json` of siglip-so400m-patch14-384 gives its sizes: 384 = 27 * 14 + 6."""
    vision = {"model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
              "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14}  # fmt: skip
    plan = hugging_face.plan("siglip", {"model_type": "siglip", "vision_config": vision}, layer=-2)
    assert hugging_face.shapes(plan.spec)["positions"] == (729, 1152)
    tower = config_lib.build("lapa_jax.models", plan.spec)
    image = jnp.zeros((1, 384, 384, 3), jnp.uint8)
    features, _ = jax.eval_shape(tower.init_with_output, jax.random.key(0), image)
    assert features.shape == (1, 729, 1152)
