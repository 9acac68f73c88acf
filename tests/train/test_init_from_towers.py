"""`config.init_from` with imported towers: read by slices, onto a mesh."""

import jax
import numpy as np

from lapa_jax.core import tree
from lapa_jax.train import pretrained_init
from tests.golden.imported import imported


def test_a_tower_becomes_a_part_of_a_model_in_pieces(tmp_path):
    _, variables, _ = imported("siglip", tmp_path / "siglip")
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    origin = pretrained_init.open_source("vision", str(tmp_path / "siglip"))
    assert tree.diff(variables, origin.shapes) == ""
    assert origin.meta["config"]["model"]["name"] == "vision.siglip" and origin.meta["config"]["model"]["dim"] == 16

    def placed(leaf):
        axes = [None] * leaf.ndim
        axes[-1] = "fsdp" if leaf.shape[-1] % 8 == 0 else None
        spec = jax.sharding.PartitionSpec(*axes)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.sharding.NamedSharding(mesh, spec))

    abstract = {"params": {"vision": jax.tree.map(placed, variables["params"])}}
    taken = pretrained_init.match((origin,), abstract, ())
    read = taken.read(tree.flatten(abstract))
    kernel = read["params/vision/layers/attention/query/kernel"]
    assert kernel.addressable_shards[3].data.shape == (2, 16, 2)
    got = tree.unflatten(read)["params"]["vision"]
    jax.tree.map(np.testing.assert_array_equal, got, variables["params"])
    assert "'vision' begins with 21 variables (13,256 numbers)" in taken.lines[0]
