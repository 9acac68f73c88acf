"""What `tools/gpu_report.py` measures: each part a function that yields rows. jax is imported when a part runs."""

import functools
import itertools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
BILLION = ["--config.model.llm.dim=2048", "--config.model.llm.depth=22", "--config.model.llm.kv_heads=4",
           "--config.model.llm.hidden=5632"]  # fmt: skip
"""The decoder of configs/vla_latent.py:1b."""
ARM = ["--config.model.action_dim=7", "--config.model.state_dim=8", "--config.model.constant=()",
       "--config.model.binary=()"]  # fmt: skip
SEVEN = ["--config.model.action_dim=7"]
"""What only data would tell. The smallest configs have the sample for that."""


class Part(NamedTuple):
    """Attributes: about: in a few words. seconds: its limit. measure: tiny -> rows, see `row`."""

    about: str
    seconds: int
    measure: Callable[[bool], Iterator[dict]]


def row(what: str, figures: dict, planned: int | None = None) -> dict:
    """A measured row: figures by their names with units, the device's peak memory so far, and what was planned."""
    from tools.bench_train import peak_bytes

    return {"what": what, "figures": figures, "peak_bytes": peak_bytes(), "planned_bytes": planned}


def on_device() -> str:
    """What this process runs on."""
    import jax

    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return f"{jax.device_count()} × {device.device_kind}" + (f", {limit / 2**30:.1f} GiB to fill" if limit else "")


def products(tiny: bool) -> Iterator[dict]:
    """Rates of square products, by the type and precision of their operands."""
    import jax
    import jax.numpy as jnp

    from tools.bench_train import seconds_of

    size, repeats = (128, 2) if tiny else (8192, 20)
    for name, dtype, precision in (("bfloat16", jnp.bfloat16, None), ("float32 (TF32)", jnp.float32, None),
                                   ("float32, highest", jnp.float32, "highest"), ("int8", jnp.int8, None)):
        a = jnp.ones((size, size), dtype)
        summed = jnp.int32 if dtype == jnp.int8 else dtype
        multiply = jax.jit(lambda a, b, p=precision, s=summed: jnp.matmul(a, b, precision=p, preferred_element_type=s))
        taken = seconds_of(lambda multiply=multiply, a=a: multiply(a, a), repeats)
        yield row(f"{size} x {size}, {name}", {"TFLOP/s": 2 * size**3 / statistics.median(taken) / 1e12})


def laq(tiny: bool) -> Iterator[dict]:
    """The training step of LAQ at the paper's sizes."""
    yield from _step("laq.py:test" if tiny else "laq.py", ["--config.model.dtype=bfloat16"], 2 if tiny else 20)


def lora(tiny: bool, size: str, batch: int, remat: str, flash: bool = True) -> Iterator[dict]:
    """A step of OpenVLA with LoRA on all linear layers."""
    settings = [f"--config.model.llm.remat={remat}", f"--config.model.llm.flash={flash}",
                f"--config.train.batch_size={2 if tiny else batch}"]  # fmt: skip
    if tiny:
        yield from _step("openvla.py:test", [*settings, "--config.model.lora_rank=2"], 2)
    else:
        yield from _step("openvla.py", [*SEVEN, *(BILLION if size == "1B" else ()), *settings], 10)


def _step(name: str, overrides: Sequence[str], steps: int) -> Iterator[dict]:
    """A training step of a config on one batch of random images."""
    import jax

    from lapa_jax.train import plan_devices
    from lapa_jax.train.flops import peak_flops
    from lapa_jax.train.plan import peak_of
    from lapa_jax.train.run import logging_to
    from lapa_jax.train.setup import compile_step, on_mesh, prepare
    from lapa_jax.train.sharding import shard_batch
    from tools.bench_train import run_steps

    devices = jax.devices()
    setup = prepare(_config(name, overrides), devices=devices)
    with on_mesh(setup.mesh), logging_to(None):
        start = time.perf_counter()
        step, flops = compile_step(setup)
        compiled = time.perf_counter() - start
        rows = setup.config.train.batch_size
        example = setup.task.model.example(rows)
        # Where there are data, their batches hold more than the model reads.
        whole = {key: example.get(key, np.zeros(leaf.shape, leaf.dtype)) for key, leaf in setup.batch.items()}
        batch = shard_batch(setup.mesh, _random_images(whole))
        state = run_steps(step, setup.init(batch), [batch] * 2)[0]
        taken = run_steps(step, state, [batch] * steps)[1] / steps
    figures = {"ms a step": 1000 * taken, "samples/s": rows / taken, "TFLOP/s": flops.model / taken / 1e12}
    if peak := peak_flops(devices[0].device_kind):
        figures["MFU %"] = 100 * flops.model / taken / peak / len(devices)
    figures["s to compile"] = compiled
    exact = plan_devices.Target(plan_devices.find_device("H100-94GB"), 1, len(devices), devices, {},
                                exact=devices[0].platform == "gpu")  # fmt: skip
    yield row(f"{setup.config.name}, batch {rows}{_words(overrides)}", figures, peak_of(step, exact))


def act(tiny: bool, name: str, settings: tuple[str, ...], stored: str) -> Iterator[dict]:
    """One observation to actions: the whole, and its stages as `tools/bench_policy.py` has them."""
    from tools import bench_policy

    policy = _trained(f"{name}:test", (), stored) if tiny else _trained(name, settings, stored)
    jpegs = bench_policy.jpegs_for(policy, 1, 256)
    turns = (bench_policy.stages_of(policy, jpegs), bench_policy.Whole(policy, jpegs))
    milliseconds = bench_policy.in_turns(turns, 3 if tiny else 100)
    for what in (bench_policy.WHOLE, *(key for key in milliseconds if key != bench_policy.WHOLE)):
        p50, p99 = np.percentile(milliseconds[what], (50, 99))
        figures = {"p50 ms": float(p50), "p99 ms": float(p99)}
        yield row(f"{policy.config.name}, {stored} kernels: {what}", figures, _bytes(policy.variables))


def labels(tiny: bool) -> Iterator[dict]:
    """Frame pairs from the host to codes on the host."""
    from tools.bench_train import seconds_of

    rows = 4 if tiny else 256
    tokenizer = _trained("laq.py:test" if tiny else "laq.py", ["--config.model.dtype=bfloat16"], "float32")
    frames = _random_images(tokenizer.model.example(rows))["frames"]
    taken = statistics.median(seconds_of(lambda: tokenizer.encode(frames), 2 if tiny else 20))
    yield row(f"{tokenizer.config.name}, {rows} pairs at once", {"pairs/s": rows / taken}, _bytes(tokenizer.variables))


def program(tiny: bool) -> Iterator[dict]:
    """A small policy as an exported program, against itself."""
    import jax

    from lapa_jax.export import program as programs
    from lapa_jax.export import stablehlo
    from tools.bench_train import seconds_of

    policy = _trained("vla_action.py:test" if tiny else "vla_action.py:tiny", (), "float32")
    platform = "cuda" if jax.devices()[0].platform == "gpu" else jax.devices()[0].platform
    images = _random_images(policy.model.example(2))["image"]
    observation = (images, "push it")
    with tempfile.TemporaryDirectory(prefix="gpu_report_") as folder:
        stablehlo.save_program(policy, pathlib.Path(folder) / "program", (platform,))
        exported = programs.load(pathlib.Path(folder) / "program")
        expected, got = (one.chunk(*observation) for one in (policy, exported))
        taken = statistics.median(seconds_of(lambda: exported.chunk(*observation), 3 if tiny else 50))
    yield row(f"{policy.config.name} on {platform}, 2 rows", {
        "largest difference from the model": float(np.abs(got - expected).max()), "ms": 1000 * taken})  # fmt: skip


def _config(name: str, overrides: Sequence[str]):
    from lapa_jax.core import config as config_lib

    return config_lib.load(f"{ROOT}/configs/{name}", list(overrides))


def _words(overrides: Sequence[str]) -> str:
    """What a row says of the settings that rows differ in."""
    pairs = [override.rpartition(".")[2].split("=", 1) for override in overrides]
    return "".join(f", {name} {value}" for name, value in pairs if name in ("remat", "flash", "dim", "dtype"))


def _random_images(batch: dict) -> dict:
    """The batch with noise for images."""
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, values.shape, np.uint8) if values.dtype == np.uint8 else values
            for name, values in batch.items()}  # fmt: skip


def _trained(name: str, overrides: Sequence[str], stored: str):
    """What `lapa_jax.load` would give of an export with random weights, kernels stored as "float32", "bfloat16" or
    "int8"."""
    import jax

    from lapa_jax.core import tree
    from lapa_jax.export.variants import stored_shapes
    from lapa_jax.inference import kinds
    from lapa_jax.train.setup import prepare

    config = _config(name, [*overrides, *["--config.model.lora_rank=0"] * name.startswith("openvla")])
    setup = prepare(config, devices=jax.devices()[:1])
    model, variables = setup.task.model, setup.abstract.variables
    shapes = {**variables, "params": stored_shapes(model, variables["params"], stored)}
    numbers = itertools.count()
    values = {leaf: _random(next(numbers), shape.shape, shape.dtype) for leaf, shape in tree.flatten(shapes).items()}
    make = kinds.resolve(kinds.kind_of(model).trained)
    return make(model, tree.unflatten(values), config=setup.config, datasets={"robot": _dataset(setup.config.model)},
                devices=jax.devices()[:1])  # fmt: skip


@functools.cache
def _maker():
    import jax
    import jax.numpy as jnp

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def make(seed, shape, dtype):
        key = jax.random.key(seed)
        if jnp.issubdtype(dtype, jnp.integer):
            return jax.random.randint(key, shape, -100, 100, dtype)
        return 0.02 * jax.random.normal(key, shape, dtype)

    return make


def _random(seed: int, shape: tuple[int, ...], dtype):
    """Numbers made on the device: those of a 7B would take minutes on the host."""
    return _maker()(seed, shape, np.dtype(dtype))


def _dataset(model) -> dict:
    """What a run says of the data it was trained on."""
    ends = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
    widths = {"action": model.get("action_dim"), "state": model.get("state_dim")}
    return {"statistics": {name: {"count": 2, **{end: [value] * width for end, value in ends.items()}}
                           for name, width in widths.items() if width},
            "features": {name: {"shape": [width], "dtype": "float32"} for name, width in widths.items() if width},
            "fps": 5.0}  # fmt: skip


def _bytes(variables) -> int:
    """Of the weights: what is planned for inference, beside which the peak holds activations."""
    import jax

    return sum(leaf.nbytes for leaf in jax.tree.leaves(variables))


def _of(measure: Callable, *arguments) -> Callable[[bool], Iterator[dict]]:
    return lambda tiny: measure(tiny, *arguments)


# In the order of what one would want most if time runs out. Limits leave room for a slow compiler.
PARTS = {
    "products": Part("rates of large products", 60, products),
    "laq": Part("a training step of LAQ, 344 M, 64 pairs", 240, laq),
    "act_7b_bfloat16": Part("an action of a 7B, bfloat16", 150, _of(act, "vla_action.py", tuple(ARM), "bfloat16")),
    "lora_7b_full_16": Part("a LoRA step of a 7B, batch 16, remat full", 150, _of(lora, "7B", 16, "full")),
    "act_7b_int8": Part("an action of a 7B, int8", 150, _of(act, "vla_action.py", tuple(ARM), "int8")),
    "openvla_bfloat16": Part("seven tokens of OpenVLA, bfloat16", 150, _of(act, "openvla.py", tuple(SEVEN),
                                                                          "bfloat16")),
    "labels": Part("labels of frame pairs", 120, labels),
    "program": Part("an exported program", 90, program),
    "lora_7b_full_16_plain": Part("the same without fused attention", 150, _of(lora, "7B", 16, "full", False)),
    "lora_1b_none_8": Part("a LoRA step of a 1B, batch 8, no remat", 120, _of(lora, "1B", 8, "none")),
    "lora_1b_dots_16": Part("batch 16, remat dots", 120, _of(lora, "1B", 16, "dots")),
    "lora_1b_full_64": Part("batch 64, remat full", 120, _of(lora, "1B", 64, "full")),
    "lora_7b_dots_8": Part("a LoRA step of a 7B, batch 8, remat dots", 150, _of(lora, "7B", 8, "dots")),
    "lora_7b_full_32": Part("batch 32, remat full", 150, _of(lora, "7B", 32, "full")),
    "openvla_int8": Part("seven tokens of OpenVLA, int8", 150, _of(act, "openvla.py", tuple(SEVEN), "int8")),
}  # fmt: skip
