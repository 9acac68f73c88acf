"""Variants of a trained model: adapters merged, kernels in bfloat16, and 8-bit kernels with their error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.evaluate import evaluation_of
from lapa_jax.export import int8_error, variants
from lapa_jax.inference.load import load
from tests.inference import random_vla


@pytest.fixture(scope="module")
def adapted(root, tmp_path_factory):
    """A policy with adapters on its decoder."""
    folder = tmp_path_factory.mktemp("run") / "run"
    run = random_vla.write(folder, root, "vla_action.py", "model.lora_rank=3", head="chunk")
    return load(run, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def policy(adapted):
    return variants.merged(adapted)


def test_merged_adapters_do_the_same_within_rounding(adapted, policy):
    seen = random_vla.seen(policy)
    assert policy.config.model.lora_rank == 0 and policy.model.lora_rank == 0 and adapted.config.model.lora_rank == 3
    assert not [name for name in tree.flatten(policy.variables) if "lora" in name]
    ours, theirs = policy.chunk(*seen), adapted.chunk(*seen)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert np.ptp(ours, axis=0).max() > 1e-3
    fresh = tree.map_named(lambda name, x: 0 * x if name.endswith("lora_b") else x, adapted.variables)
    plain = adapted.run(lambda _, batch: adapted._predict(fresh, batch), policy.observed(*seen)[0])
    assert np.abs(policy.to_units(plain, None) - ours).max() > 1e-3, "the adapters matter"
    assert variants.merged(policy) is policy


def test_bfloat16_kernels_change_nothing_where_bfloat16_computes(root, tmp_path):
    run = random_vla.write(tmp_path / "run", root, "vla_action.py", "model.dtype=bfloat16", head="chunk")
    policy = load(run, devices=jax.devices()[:1])
    half = variants.in_bfloat16(policy)
    seen = random_vla.seen(policy)
    np.testing.assert_array_equal(half.chunk(*seen), policy.chunk(*seen))
    kinds = {name.rpartition("/")[2]: leaf.dtype for name, leaf in tree.flatten(half.variables).items()}
    assert kinds["kernel"] == kinds["embedding"] == jnp.bfloat16
    assert half.variables["params"]["act"]["out"]["kernel"].dtype == jnp.float32, "it computes in float32"
    assert kinds["bias"] == kinds["scale"] == kinds["action_queries"] == jnp.float32
    half.save_pretrained(tmp_path / "half")
    assert load(tmp_path / "half", devices=jax.devices()[:1]).fingerprint == half.fingerprint


@pytest.fixture(scope="module")
def compared(policy, tmp_path_factory):
    """(int8 variant, its report)."""
    small = variants.in_int8(policy, ".*")
    where = {"run": "nowhere", "out": tmp_path_factory.mktemp("out"), "data": None, "split": None, "pairs": 24,
             "dataset": None}  # fmt: skip
    return small, int8_error.compare(policy, small, **where)


def test_8_bit_kernels_are_what_the_policy_keeps_and_stores(policy, compared, tmp_path):
    small, report = compared
    flat = tree.flatten(small.variables["params"])
    kernels = [name for name in flat if "kernel" in name]
    assert {flat[name].dtype for name in kernels if not name.endswith("scale")} == {np.dtype(np.int8)}
    assert report["bytes"] == {"float": sum(x.nbytes for x in jax.tree.leaves(policy.variables["params"])),
                               "int8": sum(x.nbytes for x in flat.values())}  # fmt: skip
    small.save_pretrained(tmp_path / "small")
    again = load(tmp_path / "small", devices=jax.devices()[:1])
    assert jax.tree.map(lambda x: x.dtype, again.variables) == jax.tree.map(lambda x: x.dtype, small.variables)
    assert again.fingerprint == small.fingerprint != policy.fingerprint
    assert (tmp_path / "small" / "model.safetensors").stat().st_size < 0.6 * report["bytes"]["float"]
    with pytest.raises(UserError, match="8-bit integers already"):
        variants.in_int8(again, ".*")


def test_the_error_told_is_that_of_the_dequantised_kernels(policy, compared):
    """Against the float model with kernels that numpy has rounded, on the same samples."""
    small, report = compared
    flat = {name: np.asarray(leaf) for name, leaf in tree.flatten(policy.variables).items()}
    for name in [name for name in flat if name.endswith("/kernel")]:
        step = np.abs(flat[name]).max(-2, keepdims=True) / 127
        flat[name] = np.round(flat[name] / np.where(step == 0, 1, step)) * step
    evaluation = evaluation_of(policy)(policy, run="nowhere", out="nowhere", pairs=24)
    (_, own), (_, rounded) = (evaluation.measure(v) for v in (policy.variables, tree.unflatten(flat)))
    there = own["weight"].max(2) > 0
    actions = [policy.to_units(arrays["prediction"][there], None) for arrays in (own, rounded)]
    away = np.abs(actions[0].astype(np.float64) - actions[1])
    entries = report["datasets"]["sample"]
    np.testing.assert_allclose([entry["mean"] for entry in entries], away.mean(0), rtol=1e-2)
    np.testing.assert_allclose([entry["max"] for entry in entries], away.max(0), rtol=1e-2)
    deviation = policy.datasets["sample"]["statistics"]["action"]["std"]
    np.testing.assert_allclose(report["error"], (100 * away.mean(0) / deviation).max(), rtol=1e-2)
    assert report["samples"] == 24 and report["error"] > 0
    assert set(report["metrics"]["int8"]) == set(report["metrics"]["float"]) >= {"action_mse"}


def test_differences_of_known_actions():
    actions, other = np.array([[1.0, 5.0], [2.0, 5.0]], np.float32), np.array([[1.5, 5.0], [1.0, 6.0]], np.float32)
    first, second = int8_error.differences(actions, other, {"std": [2.0, 0.0]})
    assert first == {"index": 0, "max": 1.0, "mean": 0.75, "max_percent": 50.0, "mean_percent": 37.5}
    assert second == {"index": 1, "max": 1.0, "mean": 0.5, "max_percent": None, "mean_percent": None}


def test_the_error_of_a_policy_of_codes_is_the_share_that_changes(root, tmp_path):
    policy = load(random_vla.write(tmp_path / "run", root, "vla_latent.py"), devices=jax.devices()[:1])
    flat = tree.flatten(policy.variables["params"])
    opposite = {name: -leaf if name.startswith("to_codes") else leaf for name, leaf in flat.items()}
    other = variants.with_parameters(policy, tree.unflatten(opposite), policy.config)
    where = {"run": "nowhere", "out": "nowhere", "pairs": 24}
    report = int8_error.compare(policy, other, **where)
    assert report["error"] == 100.0, "what was the most likely has become the least likely"
    assert report["metrics"]["float"]["loss"] != report["metrics"]["int8"]["loss"]
    assert int8_error.compare(policy, policy, **where)["error"] == 0.0


@pytest.mark.parametrize("error", [5.1, float("nan")])
def test_too_large_an_error_is_refused(error):
    int8_error.check_error({"error": 4.9}, 5.0)
    with pytest.raises(UserError, match="--max_error is 5 %"):
        int8_error.check_error({"error": error}, 5.0)


def test_no_number_in_one_dimension_is_the_error_of_all():
    parts = {"a": [{"mean_percent": 1.0}, {"mean_percent": None}], "b": [{"mean_percent": 3.0}, {"mean_percent": 2.0}]}
    assert int8_error.worst(parts) == 3.0
    parts["b"][1]["mean_percent"] = float("nan")
    assert np.isnan(int8_error.worst(parts))
    with pytest.raises(UserError, match="no dimension of the measured actions varies"):
        int8_error.worst({"a": [{"mean_percent": None}]})
