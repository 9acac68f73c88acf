"""What a run would need on devices that are not here: its training step is compiled for them, not run.

With the extra `plan` by XLA's compiler for NVIDIA GPUs, which needs neither a GPU nor CUDA; with `plan-tpu` by that for
TPUs; otherwise by that for CPUs, whose temporary memory is larger. What the figures mean and leave out:
docs/howto/scaling.md.
"""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import ml_collections

from lapa_jax.core import tree
from lapa_jax.train import hlo, plan_hlo
from lapa_jax.train.plan_devices import HBM_FULL, Gpu, Target, how_to_install, target
from lapa_jax.train.run import LOG, logging_to
from lapa_jax.train.setup import GIB, Setup, lower_step, on_mesh, prepare
from lapa_jax.train.sharding import batch_parts

NAMES = {"ema": "averages of parameters"}
CUDNN = "XLA's compiler needs cuDNN for it (pip install --no-deps nvidia-cudnn-cu13, 0.5 GB)"
WITHOUT_CUDNN = f"planned without fused attention, which the run uses and which needs less memory: {CUDNN}"
REMEDY = "more micro-batches, remat 'full', more devices on the fsdp axis"


class Needs(NamedTuple):
    """What one device needs for a step.

    Attributes:
      state: {what: bytes} of what lives from step to step.
      batch: bytes of its share of the batch.
      temporary: bytes of all that lives within the step: activations, gradients, gathered parameters.
      peak: bytes at the worst moment, all of the above included.
      program: what it sends and receives.
      flops: of the matrix products of a step, with what is computed twice to save memory.
      traffic: bytes that the step reads and writes; 0 where another compiler answered.
    """

    state: dict[str, int]
    batch: int
    temporary: int
    peak: int
    program: plan_hlo.Program
    flops: float
    traffic: float


def plan(config: ml_collections.ConfigDict, mesh: str, device: str) -> None:
    """Compiles the training step for `mesh` of `device` and prints what it needs and whether it fits.

    Args:
      config: a stage's config; where `config.data` names no data, batches have the shapes that the model says.
      mesh: hosts x GPUs per host, "2x4", or the topology of a slice of TPUs; how the run uses them is the matter of
        `config.mesh`.
      device: one of `plan_devices.DEVICES`.

    Raises:
      UserError: whatever the run would refuse; an unknown device or mesh.
    """
    goal = target(device, mesh)
    with logging_to(None):
        LOG.info("compiling the training step of %s for %s of %s ...", config.name, mesh, device)
        start = time.perf_counter()
        setup, notes = prepare(config, devices=goal.devices), ()
        try:
            needs = measure(setup, goal)
        except RuntimeError as error:
            if full := HBM_FULL.search(str(error)):
                print("\n".join(_describe_full(setup, goal, full[1])))
                return
            # Fused attention is on by default; XLA's compiler compiles it with cuDNN, which a plan need not have.
            if "cudnn" not in str(error).lower() or "llm" not in config.model:
                raise
            config = config.copy_and_resolve_references()
            config.model.llm.flash = False
            setup = prepare(config, devices=goal.devices)
            notes = (WITHOUT_CUDNN,)
            needs = measure(setup, goal)
        LOG.info("compiled in %.0f s", time.perf_counter() - start)
    print("\n".join([*notes, *describe(setup, goal, needs)]))


def measure(setup: Setup, goal: Target) -> Needs:
    """Compiles the step and reads off what it needs."""
    with on_mesh(setup.mesh):
        lowered, flops = lower_step(setup)
        compiled = lowered.compile(compiler_options=dict(goal.options))
    temporary, devices = compiled.memory_analysis().temp_size_in_bytes, setup.mesh.size
    module = hlo.Module(compiled.as_text())
    return Needs(_state(setup), _bytes(setup.batch), temporary, peak_of(compiled, goal), plan_hlo.read(module, devices),
                 flops.hardware / devices, module.total_traffic() if goal.exact else 0.0)  # fmt: skip


def peak_of(compiled: jax.stages.Compiled, goal: Target) -> int:
    """Bytes of a device at a program's worst moment, its arguments included."""
    memory = compiled.memory_analysis()
    if goal.exact and isinstance(goal.device, Gpu):
        return memory.peak_memory_in_bytes
    # The CPU's peak leaves temporary memory out; on a TPU all that is temporary is taken at once.
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def describe(setup: Setup, goal: Target, needs: Needs) -> Iterator[str]:
    """The lines of the report."""
    yield from _heading(setup, goal)
    yield ""
    yield f"{'memory of each device':40s}{'GiB':>10s}"
    rows = {**needs.state, "batch": needs.batch, "activations and the like (temporary)": needs.temporary,
            "peak": needs.peak}  # fmt: skip
    for name, size in rows.items():
        yield f"  {name:38s}{_gib(size)}"
    yield ""
    yield from _traffic(goal, needs.program, setup.config.mesh.get("grad_dtype"))
    yield f"{needs.flops / 1e12:.4g} TFLOP a device and step"
    if goal.exact:
        yield _roofline(goal, needs)
    yield ""
    yield verdict(goal, needs.peak)


def verdict(goal: Target, peak: int, remedy: str = REMEDY) -> str:
    """Whether it fits, in one line.

    Args:
      peak: bytes of a device at the worst moment. remedy: what helps where it does not.
    """
    usable = goal.device.usable
    figures = (f"the peak of {_gib(peak).strip()} GiB is {peak / usable:.0%} of the {usable / GIB:.1f} GiB "
             f"that a run may fill of one {goal.device.name}")  # fmt: skip
    if peak <= usable:
        return f"fits: {figures}"
    if not goal.exact:
        better = how_to_install(goal.device)
        return f"may not fit: {figures}, by an over-estimate; for the device's own figure: {better}"
    return f"does not fit: {figures}; what helps: {remedy}"


def _describe_full(setup: Setup, goal: Target, message: str) -> Iterator[str]:
    """The report on a program that the compiler for TPUs gave up, which then has no figures but these."""
    yield from _heading(setup, goal)
    yield ""
    yield f"{'memory of each device':40s}{'GiB':>10s}"
    for name, size in {**_state(setup), "batch": _bytes(setup.batch)}.items():
        yield f"  {name:38s}{_gib(size)}"
    yield ""
    yield f"does not fit: {message.rstrip('.')} (the compiler's words); what helps: {REMEDY}"


def _heading(setup: Setup, goal: Target) -> Iterator[str]:
    config, train = setup.config, setup.config.train
    axes = ", ".join(f"{axis} {size}" for axis, size in setup.mesh.shape.items())
    kind = "GPU" if isinstance(goal.device, Gpu) else "TPU"
    yield f"{config.name} on {goal.hosts} x {goal.per_host} {goal.device.name}: {axes}"
    if goal.exact:
        yield f"compiled by XLA's {kind} compiler, jax {jax.__version__}"
    else:
        yield "compiled by XLA's CPU compiler: memory and traffic are OVER-ESTIMATED"
        yield f"for the figures of the {kind}'s compiler: {how_to_install(goal.device)}"
    parts = batch_parts(setup.mesh) * train.micro_batches
    each, split = train.batch_size // parts, parts // train.micro_batches
    yield f"batch {train.batch_size} = {each} sequences a device x {split} x {train.micro_batches} micro-batches"
    trained, frozen = setup.optimizer.split(setup.abstract.variables["params"])
    count = lambda part: sum(leaf.size for leaf in jax.tree.leaves(part))  # noqa: E731
    yield f"{count(trained):,} parameters trained, {count(frozen):,} frozen"
    if setup.data is None:
        yield "config.data names no data: batches have the shapes that the model says"
    fresh = [n for n in tree.flatten(frozen) if f"params/{n}" not in setup.loaded.names]
    if fresh:
        yield f"config.init_from names no weights for {len(fresh)} frozen parameters: they are assumed to come"
    yield from setup.notes


def _traffic(goal: Target, program: plan_hlo.Program, grad_dtype: str | None) -> Iterator[str]:
    """A table of collectives."""
    yield f"{'collectives of each device and step':40s}{'runs':>10s}{'GiB':>10s}{'GiB sent':>10s}{'off host':>10s}"
    yield f"gradients of linear layers are sent in {grad_dtype or 'the type of the computation'} (mesh.grad_dtype)"
    crossing = [c for c in program.collectives if c.crosses(goal.per_host)]
    for kind in plan_hlo.KINDS:
        runs, size, moved = plan_hlo.total(program.collectives, kind)
        if runs:
            between = plan_hlo.total(crossing, kind)[2]
            yield f"  {kind:38s}{runs:10,d}{_gib(size)}{_gib(moved)}{_gib(between)}"
    if program.unknown_loops:
        yield f"  {program.unknown_loops} loops do not say how often they run and are counted once"


def _roofline(goal: Target, needs: Needs) -> str:
    """What the step takes at least, by the device's data sheet."""
    times = goal.device.roofline(needs.flops, needs.traffic, needs.program.sent(goal.per_host))
    parts = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in times._asdict().items())
    return f"at least {times.step:.3g} s a step by the device's data sheet: {parts}"


def _state(setup: Setup) -> dict[str, int]:
    """{what: bytes a device} of the state, with names for people."""
    params, collections = {}, dict(setup.abstract.variables)
    for name, part in zip(("trained", "frozen"), setup.optimizer.split(collections.pop("params"))):
        if size := _bytes(part):
            params[f"parameters, {name}"] = size
    others = {NAMES.get(name, name): _bytes(part) for name, part in collections.items()}
    return {**params, **others, "optimizer state": _bytes(setup.abstract.opt_state)}


def _gib(size: float) -> str:
    """Two digits behind the point, or of a small number the first two that are not 0; ten columns."""
    return f"{size / GIB:10.2f}" if size == 0 or size >= GIB / 10 else f"{size / GIB:10.2g}"


def _bytes(shapes) -> int:
    """Of arrays, on each device."""
    leaves = jax.tree.leaves(shapes)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
