"""Two processes find the same checkpoint, whichever of them sees the damage, and hear of each other's errors."""

import json
import os
import subprocess
import sys

from tests.launch.private_slurm import free_ports
from tests.launch.several_processes import settings, without_cache

CODE = """
import json, os, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from lapa_jax.core.errors import UserError
from lapa_jax.train import distributed, sharding
from lapa_jax.train.checkpoint import Checkpointer
from lapa_jax.train.checkpoint_folder import folder_of
from lapa_jax.train.fast_checkpoints import FastCheckpoints
from lapa_jax.train.recovery import recover
from lapa_jax.train.state import State

distributed.initialize()
me, run = jax.process_index(), pathlib.Path(sys.argv[1])
mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "tensor": 1}, jax.devices())
place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

def state(step):
    values = lambda: State(jnp.int32(step), {"params": {"x": jnp.arange(64.0) + step}}, {"m": jnp.ones(8) * step})
    return jax.jit(values, out_shardings=State(whole, {"params": {"x": place}}, {"m": place}))()

abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0))
writer = Checkpointer(run, keep_last=5, best_metric=None)
fast = FastCheckpoints(run / "disk", "run", {"fsdp": 2}, keep=2)
for step in (1, 2, 3):
    writer.save(state(step), step, {"step": step}, {"val/x": 1.0})
writer.close()
for step in (4, 5):
    fast.save(state(step), step, {"step": step}, False)
fast.wait()
distributed.gather(None)
found = []

def again():
    recovered = recover(run, fast)
    source = fast if recovered.fast else writer
    got = source.restore(abstract, recovered.step)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(state(recovered.step)), strict=True)
    right = all(np.array_equal(a.data, b.data) for x, y in pairs
                for a, b in zip(x.addressable_shards, y.addressable_shards, strict=True))
    found.append([recovered.step, recovered.fast, len(recovered.lines), right])
    distributed.gather(None)

def damage(path):
    content = bytearray(path.read_bytes()); content[-1] ^= 1; path.write_bytes(content)

again()
if me == 1: damage(fast._folder / "5" / "state.safetensors")
again()
if me == 1: damage(fast._folder / "4" / "state.safetensors")
again()
if me == 0: damage(max((p for p in folder_of(run, 3).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size))
distributed.gather(None)
again()

def refuse():
    raise UserError("no room")
try:
    distributed.on_first_host(refuse)
except UserError as error:
    found.append(str(error))
print(json.dumps(found))
"""


def test_two_processes_agree(root, tmp_path):
    shared = {**without_cache({**os.environ, **settings(root, 1)}), "JAX_NUM_PROCESSES": "2",
              "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}"}  # fmt: skip
    command = [sys.executable, "-B", "-c", CODE, str(tmp_path)]
    ranks = [subprocess.Popen(command, env={**shared, "JAX_PROCESS_ID": str(i)}, cwd=root, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) for i in range(2)]  # fmt: skip
    try:
        outputs = [rank.communicate(timeout=200) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    expected = [[5, True, 0, True], [4, True, 1, True], [3, False, 1, True], [2, False, 1, True], "no room"]
    for out, err in outputs:
        assert json.loads(out.splitlines()[-1]) == expected, err[-3000:]
    folders = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert folders == {"1", "2", "3.damaged"}
