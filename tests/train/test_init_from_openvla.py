"""Stage 2 begins with an imported OpenVLA: what is taken, what is new, and that its loss and gradients are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.config import ConfigError
from lapa_jax.models.released import openvla
from lapa_jax.train.setup import prepare
from tests.golden import openvla_by_hand, released

NEW = {"queries", "codes_norm/scale", "codes_norm/bias", "to_codes/kernel", "to_codes/bias"}
DEPTHS = (3, 4)
CLOSE = 2e-5
"""Of the largest number of a gradient: float32 in another order of summation."""

SMALL = ("model.dtype=float32", "optim.frozen_dtype=float32", "data.path=sample", "data.labels=sample_latents",
         "data.image_size=56", "data.text_tokenizer.name=bytes", "data.text_length=192", "data.threads=1",
         "train.batch_size=8", "train.micro_batches=1", "train.eval_batch_size=8", "mesh.fsdp=1", "mesh.data=-1")


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "released" / "openvla_small"


@pytest.fixture(scope="module")
def run(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvla") / "run"
    released.import_("openvla", golden, folder)
    return folder


@pytest.fixture(scope="module")
def setup(root, run):
    return prepare(config_of(root, run))


def config_of(root, run, *overrides, file="vla_latent.py:openvla"):
    given = [f"--config.{o}" for o in (f"init_from.={run}", *SMALL, *overrides)]
    return config_lib.load(f"{root}/configs/{file}", given)


def test_towers_projector_and_decoder_are_taken_and_what_is_new_is_named(setup):
    ours = {name.removeprefix("params/") for name in tree.flatten(setup.abstract.variables)}
    taken = {name.removeprefix("params/") for name in setup.loaded.names}
    assert ours - taken == NEW
    told = "\n".join(setup.notes)
    assert all(f"stays fresh: params/{name}" in told for name in NEW)
    assert "not used of that run: params/lm_head/kernel" in told
    assert "model.llm = {'name': 'llama', 'vocab': 32064" in told and "model.projection = 'openvla'" in told
    model = setup.config.model
    assert (model.llm.dim, model.llm.eps, model.siglip.gelu, model.dinov2.registers) == (24, 1e-6, "exact", 4)
    assert (model.llm.dtype, model.llm.remat) == ("float32", "full"), "how it computes is this run's"


def test_any_variant_may_begin_so_and_one_run_goes_on_without_the_other(root, run):
    setup = prepare(config_of(root, run, file="vla_latent.py"))
    assert setup.config.model.llm.dim == 24
    saved = {"config": config_lib.to_json(setup.config), "init_from": setup.init_from}
    again = prepare(config_of(root, "absent", file="vla_latent.py"), saved)
    assert again.config.model.to_dict() == setup.config.model.to_dict() and not again.loaded.names
    with pytest.raises(ConfigError, match="init_from_fields names 'tower'"):
        prepare(config_of(root, run, 'init_from_fields=("tower",)'))


def test_loss_and_gradients_are_those_of_the_checkpoints_own_tensors(golden, setup):
    """By hand on the Hugging Face tensors, image by image and without padding; the golden's states come first."""
    expected = dict(np.load(golden / "golden.npz"))
    tensors = {name: t.astype(np.float32) for name, t in released.tensors_of(golden).items()}
    states = jax.jit(lambda t, i, p: openvla_by_hand.llama(t, openvla_by_hand.embed(t, i, p, DEPTHS), 2))
    for i in (0, 1):
        given = expected[f"case{i}.input_ids"][0], expected[f"case{i}.pixel_values"][0]
        np.testing.assert_allclose(states(tensors, *given), expected[f"case{i}.hidden_last"][0], atol=2e-5)

    model, rng = setup.task.model, np.random.default_rng(0)
    images, codes = rng.integers(0, 256, (2, 56, 56, 3), np.uint8), rng.integers(0, 8, (2, 4))
    ids = [expected[f"case{i}.input_ids"][0] for i in (0, 1)]
    batch = {"image": images, "text": np.zeros((2, 192), np.int32), "text_mask": np.zeros((2, 192), np.float32),
             "latent": codes.astype(np.int32), "latent_mask": np.ones(2, np.float32)}  # fmt: skip
    for row, prompt in enumerate(ids):
        batch["text"][row, : len(prompt)], batch["text_mask"][row, : len(prompt)] = prompt, 1
    fresh = jax.jit(lambda b: model.init(jax.random.key(0), b, train=True))(batch)["params"]
    release = openvla.read(golden)
    params = tree.flatten(jax.tree.map(np.array, fresh))
    for name, places in release.places.items():
        for place in places:
            if place.path in params:
                params[place.path][slice(None) if place.layer is None else place.layer] = place.change(tensors[name])
    params = tree.unflatten(params)

    stats = release.config["model"]
    pixels = [np.concatenate([((images / np.float32(255) - np.array(stats[kind]["mean"], np.float32))
                               / np.array(stats[kind]["std"], np.float32))[row].transpose(2, 0, 1)
                              for kind in ("dinov2", "siglip")]) for row in (0, 1)]  # fmt: skip

    def by_hand(t, new):
        total = 0.0
        for row in (0, 1):
            x = openvla_by_hand.embed(t, ids[row], pixels[row], DEPTHS)
            states = openvla_by_hand.llama(t, jnp.concatenate([x, new["queries"]]), 2)[-4:]
            states = states - states.mean(-1, keepdims=True)
            states = states / jnp.sqrt((states**2).mean(-1, keepdims=True) + 1e-5)
            states = states * new["codes_norm"]["scale"] + new["codes_norm"]["bias"]
            logits = states @ new["to_codes"]["kernel"] + new["to_codes"]["bias"]
            total += -jnp.mean(jax.nn.log_softmax(logits)[np.arange(4), codes[row]]) / 2
        return total

    new = {name: params[name] for name in ("queries", "codes_norm", "to_codes")}
    wanted, (theirs, theirs_new) = jax.jit(jax.value_and_grad(by_hand, (0, 1)))(tensors, new)
    loss = lambda p: setup.task.loss({"params": p}, batch, jax.random.key(0))[0]  # noqa: E731
    got, ours = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(got, wanted, rtol=2e-6)
    ours = tree.flatten(ours)
    for name, value in tree.flatten(theirs_new).items():
        np.testing.assert_allclose(ours[name], value, atol=CLOSE * np.abs(value).max(), err_msg=name)
    for name, places in release.places.items():
        for place in places:
            if place.path not in ours:
                continue
            mine = np.asarray(ours[place.path] if place.layer is None else ours[place.path][place.layer])
            other = place.change(np.asarray(theirs[name]))
            if place.path == "dinov2/positions":  # the class token's is not in the checkpoint
                mine, other = mine[1:], other[1:]
            largest = np.abs(other).max()
            if place.path.endswith("attention/key/bias"):  # which no softmax notices
                assert largest < 1e-7 and np.abs(mine).max() < 1e-7
                continue
            np.testing.assert_allclose(mine, other, atol=CLOSE * largest, err_msg=name)
