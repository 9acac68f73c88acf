"""What `tools/bench_growth.py` measures: how costs grow with one size at a time, and the law that they should follow.

Each group is a function of the sizes that gives a `Growth`; jax is imported when it runs. CPU seconds are those of all
cores, medians of rounds in turns, so that other work on the machine does not bend the curve.
"""

import collections
import functools
import itertools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
MIB, ROWS = 2**20, 256
ROUNDS, SECONDS = 5, 0.3
"""Rounds of each point, and CPU seconds of one, about."""
POLICY = ("configs/icl.py:test", "model.dim=96", "model.hidden=256", "model.heads=4", "model.vit_dim=48",
          "train.batch_size=16", "model.context=8", "model.prompt_length=8", "data.image_size=32")  # fmt: skip
"""A policy in context that compiles in seconds: a tower of one block for images of 32 pixels, one block behind it."""
CHUNKS = ("configs/fsq.py:test", "model.dim=96", "model.chunk_length=16", "model.patch=1", "train.batch_size=64")
"""A tokenizer of chunks of 16 actions, with one block a side."""
CPU, MEMORY = "CPU ms a step", "temporary MiB"
LAWS = {"constant": lambda size: 1, "linear": lambda size: size, "quadratic": lambda size: size**2,
        "linear in 16 + codes": lambda size: 16 + size}  # fmt: skip
"""What a figure is proportional to, by the size. The last is of a chunk's 16 actions and its codes in one sequence."""


class Series(NamedTuple):
    """One figure over the sizes. law: in words. measured, expected: a number for each size."""

    law: str
    measured: Sequence[float]
    expected: Sequence[float]


class Growth(NamedTuple):
    """What a group measures. sizes: of what `axis` names. series: by the figure's name with its unit."""

    axis: str
    sizes: Sequence[int]
    series: Mapping[str, Series]


def with_law(law: str, sizes: Sequence[int], measured: Sequence[float]) -> Series:
    """A series with one of `LAWS`: what is to grow is drawn through the largest size, where fixed costs weigh least,
    and what is to be constant through the smallest."""
    at = 0 if law == "constant" else -1
    return Series(law, measured, [measured[at] * LAWS[law](size) / LAWS[law](sizes[at]) for size in sizes])


def steps(axis: str, sizes: Sequence[int], law: str, config: str, *settings: str) -> Growth:
    """A training step against one size: CPU time and temporary memory.

    Args:
      law: of both. config, settings: keys and values, "{}" in which is the size.
    """
    from lapa_jax.core import config as config_lib

    points = [Step(config_lib.load(str(ROOT / config), [f"--config.{text.format(size)}" for text in settings]))
              for size in sizes]  # fmt: skip
    taken = in_rounds([point.milliseconds for point in points])
    memory = [point.temporary / MIB for point in points]
    return Growth(axis, sizes, {CPU: with_law(law, sizes, taken), MEMORY: with_law(law, sizes, memory)})


def in_rounds(functions: Sequence[Callable[[], float]]) -> list[float]:
    """The median of what each function gives in `ROUNDS` rounds: forwards, backwards, forwards ..., so that what slows
    the machine down for a while slows all of them."""
    taken: list[list[float]] = [[] for _ in functions]
    for number in range(ROUNDS):
        order = range(len(functions))
        for k in order if number % 2 == 0 else reversed(order):
            taken[k].append(functions[k]())
    return [statistics.median(values) for values in taken]


class Step:
    """The compiled training step of a config, on noise.

    Values do not change what a step costs, and to compile their initialisation takes as long as the step itself.
    """

    def __init__(self, config):
        from lapa_jax.train.run import logging_to
        from lapa_jax.train.setup import compile_step, on_mesh, prepare

        setup = prepare(config)
        with on_mesh(setup.mesh), logging_to(None):
            self._step, _ = compile_step(setup)
        self.temporary = self._step.memory_analysis().temp_size_in_bytes
        self._state, self._batch = noise(setup.abstract), noise(setup.batch)
        self._run(2)
        self._count = 1 + int(1000 * SECONDS / self._run(2))

    def milliseconds(self) -> float:
        """CPU time of a step, measured over a round."""
        return self._run(self._count)

    def _run(self, count: int) -> float:
        import jax

        begin = time.process_time()
        for _ in range(count):
            self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready((self._state, metrics))
        return 1000 * (time.process_time() - begin) / count


def noise(shapes):
    """Arrays of these shapes: floats as small as parameters and second moments, integers 0 or 1."""
    import jax

    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if np.issubdtype(leaf.dtype, np.floating):
            values = np.abs(rng.standard_normal(leaf.shape)) * 0.02
        else:
            values = rng.integers(0, 2, leaf.shape) if leaf.shape else np.zeros(())
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, shapes)


def data(sizes: Sequence[int]) -> Growth:
    """Opening numeric data as stage 3 does, and reading it, against the steps of the split: no image is decoded."""
    from multiprocessing.reduction import ForkingPickler

    from lapa_jax.data import pipeline
    from lapa_jax.data.loader.loader import train_batches
    from tools import bench_open

    opening, first, reading, sent = [], [], [], []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="bench_growth_") as name:
            folder = pathlib.Path(name)
            bench_open.make(folder, size)
            build = functools.partial(pipeline.build, bench_open.options(folder), "train")
            opening.append(statistics.median(cpu(build) for _ in range(ROUNDS)))
            source = build()
            sent.append(len(ForkingPickler.dumps(source)) / MIB)
            batches = train_batches(source, seed=0, batch_size=ROWS, threads=2)
            first.append(cpu(functools.partial(next, batches)))
            take = lambda batches: collections.deque(itertools.islice(batches, 20), maxlen=0)  # noqa: E731
            taken = statistics.median(cpu(functools.partial(take, batches)) for _ in range(ROUNDS))
            reading.append(1e6 * taken / 20 / ROWS)
    return Growth("steps of the data", sizes, {
        "CPU s to open": with_law("linear", sizes, opening),
        "CPU s to the first batch": with_law("constant", sizes, first),
        "CPU us a chunk": with_law("constant", sizes, reading),
        "MiB sent to a worker": with_law("linear", sizes, sent)})  # fmt: skip


def cpu(function: Callable[[], object]) -> float:
    """CPU seconds of this process for a call."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def devices(sizes: Sequence[int]) -> Growth:
    """What one device sends in a step, against devices that share all weights ("fsdp") or hold copies ("data"), from
    plans of a small transformer. Four chunks of actions a device."""
    import jax

    from lapa_jax.core import config as config_lib
    from lapa_jax.train.plan import measure
    from lapa_jax.train.plan_devices import target
    from lapa_jax.train.run import logging_to
    from lapa_jax.train.setup import prepare

    goals, series = target("H100-94GB", f"1x{max(sizes)}"), {}
    for axis, times in (("fsdp", 3), ("data", 2)):
        sent, expected = [], []
        for size in sizes:
            batch = [f"--config.train.{name}={4 * size}" for name in ("batch_size", "eval_batch_size")]
            axes = ["--config.mesh.data=1", "--config.mesh.fsdp=1", f"--config.mesh.{axis}=-1"]
            config = config_lib.load(str(ROOT / "configs/fsq.py:test"), [*axes, *batch, "--config.model.dim=256"])
            goal = goals._replace(per_host=size, devices=goals.devices[:size])
            with logging_to(None):
                setup = prepare(config, devices=goal.devices)
                sent.append(measure(setup, goal).program.sent(goal.per_host)[0] / MIB)
            params = setup.abstract.variables["params"]
            weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
            expected.append(times * weights * (size - 1) / size / MIB)
        series[f"MiB sent, {axis}"] = Series(f"{times} x weights x (n - 1) / n", sent, expected)
    return Growth("devices", sizes, series)


class Group(NamedTuple):
    """Attributes: about: in a few words. sizes: smallest first. measure: sizes -> Growth."""

    about: str
    sizes: tuple[int, ...]
    measure: Callable[[Sequence[int]], Growth]


def _steps(base: Sequence[str], axis: str, law: str, *settings: str):
    return lambda sizes: steps(axis, sizes, law, *base, *settings)


GROUPS = {
    "batch": Group("a training step against the batch", (4, 16, 64),
                   _steps(POLICY, "sequences in a batch", "linear", "train.batch_size={}")),
    "image": Group("a training step against the side of the images", (16, 32, 64),
                   _steps(POLICY, "side of an image in pixels", "quadratic", "data.image_size={}")),
    "depth": Group("a training step against the blocks of a stack", (1, 4, 16),
                   _steps(POLICY, "blocks of the policy", "linear", "model.depth={}")),
    "codes": Group("a training step against the codes of a chunk", (1, 4, 16),
                   _steps(CHUNKS, "codes of a chunk of 16 actions", "linear in 16 + codes", "model.tokens={}")),
    "sequence": Group("a training step against the length of a sequence", (4, 16, 64),
                      _steps(POLICY, "steps of a sequence and of its prompt", "linear", "model.context={0}",
                             "model.prompt_length={0}")),
    "data": Group("opening and reading data against its size", (10_000, 100_000, 1_000_000, 10_000_000), data),
    "devices": Group("what a device sends in a step, from plans", (1, 2, 4, 8), devices),
}  # fmt: skip
