"""Canaries: what we lean on in jax, flax, orbax, grain, msgpack and aiohttp, tested without any code of ours.

When one of these fails after an upgrade, the dependency has moved a seam: the comment says who in lapa_jax leans on it.
"""

import asyncio
import json

import flax.linen as nn
import grain
import jax
import jax.export
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest
from flax.errors import ModifyScopeVariableError
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

# ------------------------------------------------------------------------------------------------------------- jax


def mesh(*shape: int) -> Mesh:
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return Mesh(devices, ("data", "fsdp")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))


def test_meshes_are_auto_only_when_told_so():
    """train/sharding.py passes axis_types: jax.make_mesh alone is Explicit, and linen's attention then fails."""
    assert mesh(2, 2).axis_types == (AxisType.Auto, AxisType.Auto)
    assert jax.make_mesh((2, 2), ("data", "fsdp")).axis_types == (AxisType.Explicit, AxisType.Explicit)


def test_set_mesh_gives_bare_partition_specs_a_meaning():
    """train/setup.py runs the loop under jax.set_mesh."""
    with jax.set_mesh(mesh(2, 2)):
        halves = jax.jit(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec("fsdp")))(jnp.arange(8.0))
    assert halves.sharding.spec == PartitionSpec("fsdp") and halves.addressable_shards[0].data.shape == (4,)


def test_a_batch_on_the_mesh_reduces_to_the_global_mean():
    """Losses and code counts are means over the global batch, with no collective written by hand."""
    batch = jax.make_array_from_process_local_data(
        NamedSharding(mesh(2, 2), PartitionSpec(("data", "fsdp"))), np.arange(8.0, dtype=np.float32)
    )
    assert len(batch.addressable_shards) == 4 and float(jax.jit(jnp.mean)(batch)) == 3.5


def test_random_numbers_do_not_depend_on_the_mesh():
    """The noise of NSVQ is drawn inside jit over a sharded batch; a run may change its mesh."""
    assert jax.config.jax_threefry_partitionable
    draw = lambda: jax.random.normal(jax.random.key(3), (8, 4))  # noqa: E731
    sharded = jax.jit(draw, out_shardings=NamedSharding(mesh(4), PartitionSpec("data")))()
    np.testing.assert_array_equal(np.asarray(sharded), np.asarray(jax.jit(draw)()))


def test_fold_in_is_a_fixed_function_of_key_and_step():
    """train/step.py: rng = fold_in(key(seed), step). Resume relies on equal keys, traced or not, in every version."""
    keys = [jax.random.fold_in(jax.random.key(7), step) for step in (0, 1, 100_000)]
    traced = jax.jit(lambda step: jax.random.key_data(jax.random.fold_in(jax.random.key(7), step)))
    for key, step in zip(keys, (0, 1, 100_000), strict=True):
        np.testing.assert_array_equal(jax.random.key_data(key), traced(jnp.int32(step)))
    data = np.array([jax.random.key_data(key) for key in keys])
    np.testing.assert_array_equal(data[0], np.array([3625411723, 1954958720], np.uint32))
    assert len(np.unique(data, axis=0)) == 3


def test_key_paths_have_simple_names():
    """Parameter names "a/b/c" in optimizer rules, sharding rules and checkpoints."""
    paths, _ = jax.tree_util.tree_flatten_with_path({"layers": {"attention": {"kernel": 1}}, "codebook": 2})
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    assert names == ["codebook", "layers/attention/kernel"]  # dicts are flattened in sorted order


def test_a_compiled_step_tells_its_memory_and_donates_its_state():
    """train/loop.py compiles before the loop and prints the memory analysis."""
    step = jax.jit(lambda state, x: (state + x, x.sum()), donate_argnums=0)
    compiled = step.lower(jnp.zeros(1024), jnp.ones(1024)).compile()
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes == 8192 and memory.alias_size_in_bytes == 4096
    state = jnp.zeros(1024)
    compiled(state, jnp.ones(1024))
    assert state.is_deleted()


def test_programs_are_stored_for_any_size_and_several_platforms():
    """export/stablehlo.py leaves the number of rows open and lowers for CUDA without any; needs flatbuffers."""
    (rows,) = jax.export.symbolic_shape("rows")
    arguments = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}, jax.ShapeDtypeStruct((rows, 3), jnp.float32)
    twice = jax.jit(lambda weights, x: {"y": 2 * x @ weights["w"]})
    stored = jax.export.export(twice, platforms=("cpu", "cuda"))(*arguments).serialize()
    program = jax.export.deserialize(stored)
    assert program.platforms == ("cpu", "cuda")
    for count in (1, 5):
        y = jax.jit(program.call)({"w": jnp.arange(3.0)}, jnp.ones((count, 3)))["y"]
        np.testing.assert_allclose(y, np.full(count, 6.0))


# ------------------------------------------------------------------------------------------------------------ flax


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4, name="dense")(x), None


class Stack(nn.Module):
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        layer = nn.remat(Layer, prevent_cse=False) if self.remat else Layer
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        scanned = nn.scan(layer, length=3, in_axes=nn.broadcast, **axes)
        return scanned(name="layers")(x, None)[0]


def test_scan_stacks_parameters_on_axis_0_under_the_given_name():
    """nn/transformer.py, and with it every checkpoint and the weight importer."""
    params = Stack().init(jax.random.key(0), jnp.ones((2, 4)))["params"]
    assert jax.tree.map(jnp.shape, params) == {"layers": {"dense": {"kernel": (3, 4, 4), "bias": (3, 4)}}}
    assert type(params) is dict
    assert not np.allclose(params["layers"]["dense"]["kernel"][0], params["layers"]["dense"]["kernel"][1])


def test_remat_changes_neither_names_nor_values_nor_gradients():
    """`remat` may be switched on for a run that began without."""
    x, variables = jnp.ones((2, 4)), Stack().init(jax.random.key(0), jnp.ones((2, 4)))
    plain, saved = (
        jax.value_and_grad(lambda v, remat=remat: Stack(remat).apply(v, x).sum())(variables) for remat in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), plain, saved)


class Counter(nn.Module):
    @nn.compact
    def __call__(self, x):
        usage = self.variable("codebook", "usage", lambda: jnp.zeros((), jnp.float32))
        if not self.is_initializing():
            usage.value = usage.value + x.sum()
        return x


def test_a_collection_changes_only_where_it_is_named_mutable():
    """The code counters of NSVQ: writing them in evaluation is an error, not a silent loss."""
    variables = Counter().init(jax.random.key(0), jnp.ones(3))
    assert float(variables["codebook"]["usage"]) == 0.0
    _, changed = Counter().apply(variables, jnp.ones(3), mutable=["codebook"])
    assert float(changed["codebook"]["usage"]) == 3.0 and float(variables["codebook"]["usage"]) == 0.0
    with pytest.raises(ModifyScopeVariableError, match="usage"):
        Counter().apply(variables, jnp.ones(3))


def test_optax_norm_is_that_of_the_whole_tree():
    """train/step.py logs it as grad_norm."""
    assert float(optax.tree.norm({"a": jnp.array([3.0]), "b": {"c": jnp.array([[4.0]])}})) == pytest.approx(5.0)


# ----------------------------------------------------------------------------------------------------------- orbax


@pytest.fixture
def saved(tmp_path):
    """A checkpoint with one tree."""
    path = tmp_path / "0"
    params = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "step": np.array(5, np.int32)}
    ocp.save_checkpointables(path, {"params": params})
    return path


def abstract(shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh(2), PartitionSpec()))


def test_loading_is_strict_on_names_and_shapes(saved):
    """train/checkpoint.py has no checks of its own."""
    right = {"w": abstract((2, 3), jnp.float32), "step": abstract((), jnp.int32)}
    loaded = ocp.load(saved, right, checkpointable_name="params")
    np.testing.assert_array_equal(loaded["w"], np.arange(6.0).reshape(2, 3))
    bad = (
        right | {"extra": abstract((), jnp.float32)},
        {"w": right["w"]},
        right | {"w": abstract((3, 2), jnp.float32)},
    )
    for wrong in bad:
        with pytest.raises(ValueError):
            ocp.load(saved, wrong, checkpointable_name="params")


def test_the_name_says_whether_a_step_is_whole(saved):
    """`is_orbax_checkpoint` looks at the name, not into the folder: unfinished writes must have another."""
    assert ocp.is_orbax_checkpoint(saved) and (saved / "commit_success.txt").exists()
    unfinished = saved.rename(saved.parent / "0.orbax-checkpoint-tmp")
    assert not ocp.is_orbax_checkpoint(unfinished)


def test_unfinished_writes_have_another_name_and_are_swept(tmp_path):
    """A step exists under its number only when it is whole: the write goes to a temporary name and is renamed."""
    folder = tmp_path / "checkpoints"
    litter = folder / "7.orbax-checkpoint-tmp"
    (litter / "params").mkdir(parents=True)
    with ocp.training.Checkpointer(folder, cleanup_tmp_directories=True) as checkpointer:
        assert checkpointer.latest is None
        checkpointer.save_checkpointables(3, {"params": {"w": np.ones(2, np.float32)}})
        assert checkpointer.latest.step == 3
    assert not litter.exists() and sorted(p.name for p in folder.iterdir()) == ["3"]


def test_a_tree_saved_on_one_mesh_loads_on_another(tmp_path):
    """Runs may change their mesh between restarts."""
    values = np.arange(16.0, dtype=np.float32).reshape(4, 4)
    array = jax.device_put(values, NamedSharding(mesh(1, 4), PartitionSpec(None, "fsdp")))
    ocp.save_checkpointables(tmp_path / "0", {"params": {"w": array}})
    other = NamedSharding(mesh(2, 1), PartitionSpec("data"))
    abstract = {"w": jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=other)}
    loaded = ocp.load(tmp_path / "0", abstract, checkpointable_name="params")["w"]
    assert loaded.sharding == other
    np.testing.assert_array_equal(np.asarray(loaded), values)


def test_json_items_are_one_readable_file(tmp_path):
    """ "meta" of a checkpoint."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.checkpointables.registry = registry
    with context:
        ocp.save_checkpointables(tmp_path / "0", {"meta": {"fps": 10.0, "names": ["a"]}})
        assert ocp.load_checkpointables(tmp_path / "0", {"meta": None})["meta"] == {"fps": 10.0, "names": ["a"]}
    (file,) = [p for p in (tmp_path / "0" / "meta").iterdir() if p.is_file()]
    assert json.loads(file.read_text())["fps"] == 10.0


# ----------------------------------------------------------------------------------------------------------- grain


class Squares:
    """A random-access source."""

    def __len__(self):
        return 1 << 40

    def __getitem__(self, i):
        return np.int64(i) ** 2

    def __repr__(self):
        return "Squares()"


def test_a_slice_of_a_source_read_by_threads_keeps_its_order_and_its_start():
    """data/loader/loader.py starts at a step by slicing and leaves the reading ahead to grain's threads."""
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
    iterator = iter(grain.MapDataset.source(Squares())[1000:].to_iter_dataset(options))
    assert [int(next(iterator)) for _ in range(20)] == [i * i for i in range(1000, 1020)]


# --------------------------------------------------------------------------------------------- msgpack and aiohttp


def test_msgpack_makes_no_room_for_what_a_message_only_claims():
    """serve/msgpack_numpy.py: lists within lists that each claim four billion entries."""
    for message in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdc\x10\x01" * 900):
        with pytest.raises(ValueError):
            msgpack.unpackb(message, max_array_len=4096, max_map_len=4096)


def test_aiohttp_answers_what_is_in_flight_and_closes_on_messages_that_are_too_large():
    """serve/http.py and run.py have no code of their own for either."""
    web = pytest.importorskip("aiohttp.web")
    begun = asyncio.Event()

    async def slow(request):
        begun.set()
        await asyncio.sleep(0.2)
        return web.Response(text="whole")

    async def listen(request):
        socket = web.WebSocketResponse(max_msg_size=100)
        await socket.prepare(request)
        return [message async for message in socket] and socket

    async def run():
        app = web.Application(client_max_size=100)
        app.add_routes([web.get("/slow", slow), web.get("/listen", listen), web.post("/read", aiohttp_read)])
        runner = web.AppRunner(app, shutdown_timeout=10)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        import aiohttp

        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{base}/listen") as socket:
                await socket.send_bytes(bytes(200))
                await socket.receive()
                assert socket.close_code == 1009
            async with session.post(f"{base}/read", data=bytes(200)) as reply:
                assert reply.status == 413
            asked = asyncio.create_task(session.get(f"{base}/slow"))
            await begun.wait()
            await runner.cleanup()
            assert await (await asked).text() == "whole"

    async def aiohttp_read(request):
        return web.Response(body=await request.read())

    asyncio.run(run())
