"""The stage-2 model on meshes of eight devices: the loss and every gradient are those of one device."""

import jax
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.models.llama import MESH_RULES
from lapa_jax.train import sharding
from lapa_jax.train.setup import on_mesh, prepare

TOWER = "image_size=28 dim=64 depth=2 heads=4 hidden=256"
TINY = [*(f"model.{tower}.{field}" for tower in ("siglip", "dinov2") for field in TOWER.split()),
        "model.llm.vocab=264", "model.llm.dim=64", "model.llm.depth=2", "model.llm.heads=4", "model.llm.kv_heads=2",
        "model.llm.hidden=256", "data.image_size=28", "data.text_length=6", "train.batch_size=16",
        "train.eval_batch_size=16"]  # fmt: skip
MESHES = {"fsdp 8": (1, 8, 1), "fsdp 4 x data 2": (2, 4, 1), "fsdp 2 x tensor 2 x data 2": (2, 2, 2)}


def batch(example: dict) -> dict[str, np.ndarray]:
    """A random batch; every second instruction is shorter."""
    rng = np.random.default_rng(0)
    most = {"image": 256, "text": 264, "latent": 8}
    filled = {name: rng.integers(0, most[name], leaf.shape).astype(leaf.dtype) if name in most
              else np.ones(leaf.shape, leaf.dtype) for name, leaf in example.items()}  # fmt: skip
    filled["text_mask"][::2, 4:] = 0
    return filled


def gradients(root, data: int, fsdp: int, tensor: int, params=None):
    """(loss, {parameter: gradient}, parameters) on a mesh of that many devices, with fresh parameters or given ones."""
    axes = [f"mesh.data={data}", f"mesh.fsdp={fsdp}", f"mesh.tensor={tensor}"]
    config = config_lib.load(f"{root}/configs/vla_latent.py:tiny", [f"--config.{o}" for o in (*TINY, *axes)])
    config.data.path = None  # the shapes of batches are then the model's
    setup = prepare(config, devices=jax.devices()[: data * fsdp * tensor])
    assert config.mesh.rules == MESH_RULES

    def both(params, batch):
        loss = lambda params: setup.task.loss({"params": params}, batch, jax.random.key(1))[0]  # noqa: E731
        return jax.value_and_grad(loss)(params)

    shapes = setup.abstract.variables["params"]
    places = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    with on_mesh(setup.mesh):
        examples = sharding.shard_batch(setup.mesh, batch(setup.batch))
        if params is None:
            params = compiled(lambda batch: setup.task.init(jax.random.key(0), batch)["params"], places, examples)
        params = jax.tree.map(lambda leaf, place: jax.device_put(np.asarray(leaf), place), params, places)
        loss, grads = compiled(both, (None, places), params, examples)
    return float(loss), jax.device_get(tree.flatten(grads)), params


def compiled(function, places, *args):
    """`function(*args)` by a program that took little time to make."""
    return jax.jit(function, out_shardings=places).lower(*args).compile()(*args)


@pytest.fixture(scope="module")
def alone(root):
    return gradients(root, 1, 1, 1)


@pytest.mark.parametrize("axes", MESHES.values(), ids=MESHES)
def test_loss_and_gradients_are_those_of_one_device(root, alone, axes):
    loss, grads, params = gradients(root, *axes, params=alone[2])
    assert loss == pytest.approx(alone[0], rel=1e-5)
    assert grads.keys() == alone[1].keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, alone[1][name], rtol=1e-5, atol=1e-5, err_msg=name)
    specs = {name: leaf.sharding.spec for name, leaf in tree.flatten(params).items()}
    kernels = {name: spec for name, spec in specs.items() if name.startswith("llm/decoder") and "kernel" in name}
    assert len(kernels) == 7 and all("fsdp" in spec and "tensor" in spec for spec in kernels.values())
    assert any("fsdp" in spec for name, spec in specs.items() if name.startswith("siglip")), "towers are split too"
    assert max(abs(grad).max() for grad in grads.values()) > 0.01, "and there is something to compare"
