from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lapa_jax.core.config import ConfigError
from lapa_jax.train import sharding


def mesh(data=1, fsdp=8, tensor=1, **more):
    return sharding.make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor, **more})


def test_mesh_fills_the_open_axis_and_refuses_what_does_not_cover():
    assert dict(mesh(data=2, fsdp=-1).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    with pytest.raises(ConfigError, match="does not cover 8 devices"):
        mesh(data=3, fsdp=-1)
    with pytest.raises(ConfigError, match="does not cover 8 devices"):
        mesh(data=2, fsdp=2)


def test_gradients_are_sent_in_one_of_two_types():
    mesh(grad_dtype=None), mesh(grad_dtype="float32")
    with pytest.raises(ConfigError, match="grad_dtype is 'bfloat16'; give 'float32', or None"):
        mesh(grad_dtype="bfloat16")


def test_largest_divisible_axis_goes_to_fsdp():
    m = mesh()
    assert sharding.spec_for("a/kernel", (512, 1024), m) == PartitionSpec(None, "fsdp")
    assert sharding.spec_for("a/kernel", (1024, 513), m) == PartitionSpec("fsdp", None)
    assert sharding.spec_for("a/bias", (64,), m) == PartitionSpec()
    rules = ((".*/kernel", ("tensor", "fsdp")),)
    assert sharding.spec_for("a/kernel", (8, 8), m, rules) == PartitionSpec("tensor", "fsdp")


@pytest.mark.parametrize("spec, message", [
    (("tensor", None), r"splits axis 0 of a/kernel \(15, 8\) in 2, which does not divide 15"),
    ((None, ("fsdp", "tensor")), r"splits axis 1 of a/kernel \(15, 8\) in 16"),
    ((None, "fdsp"), "names the mesh axis 'fdsp'; did you mean 'fsdp'"),
    ((None, None, "fsdp"), "has 3 axes, a/kernel .* has 2"),
])  # fmt: skip
def test_rules_that_do_not_fit_are_refused(spec, message):
    wide = SimpleNamespace(shape={"data": 1, "fsdp": 8, "tensor": 2})
    with pytest.raises(ConfigError, match=message):
        sharding.spec_for("a/kernel", (15, 8), wide, ((".*kernel", spec),))


def test_rules_that_match_nothing_are_refused():
    state = {"params": {"llm": {"embedding": np.zeros((8, 8))}}}
    sharding.shardings(state, mesh(), ((".*llm/embedding", (None, "fsdp")),))
    with pytest.raises(ConfigError, match="'.*llm/embeding' matches no array; did you mean 'llm/embedding'"):
        sharding.shardings(state, mesh(), ((".*llm/embeding", (None, "fsdp")),))
    with pytest.raises(ConfigError, match=r"'\(' is no regular expression"):
        sharding.shardings(state, mesh(), (("(", (None, "fsdp")),))


def owners(*shape: int, per_process: int):
    """A mesh whose devices belong to processes, so many to each."""
    devices = [SimpleNamespace(process_index=number // per_process) for number in range(np.prod(shape))]
    return SimpleNamespace(shape=dict(zip(sharding.AXES, shape)), devices=np.array(devices).reshape(shape))


def test_processes_of_the_same_rows_read_the_same():
    shares = lambda mesh, count: [sharding.rows_of_host(mesh, process) for process in range(count)]  # noqa: E731
    assert shares(owners(1, 4, 1, per_process=1), 4) == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert shares(owners(2, 2, 1, per_process=2), 2) == [(0, 2), (1, 2)]
    assert shares(owners(1, 2, 2, per_process=1), 4) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert shares(owners(1, 2, 2, per_process=2), 2) == [(0, 2), (1, 2)]
    assert shares(owners(1, 1, 8, per_process=4), 2) == [(0, 1), (0, 1)]
    with pytest.raises(ConfigError, match="splits batches across processes unevenly"):
        sharding.rows_of_host(owners(1, 2, 3, per_process=2), 0)


def test_the_scan_axis_is_never_split():
    assert sharding.spec_for("encoder/layers/kernel", (1024, 512, 8), mesh()) == PartitionSpec(None, "fsdp", None)
    assert sharding.spec_for("0/encoder/layers/kernel", (1024, 512, 8), mesh()) == PartitionSpec(None, "fsdp", None)


def test_replication_by_accident_is_refused_with_the_names():
    state = {"good": jnp.zeros((1024, 1024)), "odd": jnp.zeros((1023, 1023))}
    with pytest.raises(ConfigError, match=r"odd \(1023, 1023\)"):
        sharding.check_replication(state, mesh())
    sharding.check_replication(state, mesh(), ((".*odd", ()),))
    sharding.check_replication(state, mesh(data=8, fsdp=1))


def test_batch_size_names_the_next_that_divides():
    sharding.check_batch_size(mesh(), 32, 2)
    with pytest.raises(ConfigError, match="the next that does is 48"):
        sharding.check_batch_size(mesh(), 40, 2)


def test_batches_are_split_over_data_and_fsdp():
    batch = sharding.shard_batch(mesh(data=2, fsdp=4), {"x": np.arange(16.0)})
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2,)}
    assert len(jax.devices()) == 8
