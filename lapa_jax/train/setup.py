"""Everything that exists before the first step: model, data, mesh, optimizer, shapes; and the compiled step."""

import collections
import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from lapa_jax.core import config as config_lib
from lapa_jax.core import config_keys, trackers, tree
from lapa_jax.core.allocator import without_collection
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.data.loader import loader
from lapa_jax.data.training import TrainingData, names_data, open_training
from lapa_jax.train import ema, pretrained_init, profiler, sharding
from lapa_jax.train.distributed import SaveTimer
from lapa_jax.train.flops import Flops, trace_step
from lapa_jax.train.optim import Optimizer, check_gradients, make_optimizer
from lapa_jax.train.run import LOG
from lapa_jax.train.spikes import Losses
from lapa_jax.train.state import State, init_state
from lapa_jax.train.step import make_train_step
from lapa_jax.train.stopping import Patience
from lapa_jax.train.task import Task
from lapa_jax.train.watchdog import Watchdog

GIB = 2**30
MODELS = "lapa_jax.models"


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run is made of.

    Attributes:
      config: the run's config, with what the model took from the data filled in. task: model and losses. mesh: the
        devices.
      from_data: {field of config.model: value} of what was filled in.
      loaded: which variables begin as those of other runs; empty where the run goes on from its own checkpoint.
      init_from: {prefix: {"path", "step"}} of where they came from when the run began.
      notes: lines for the log about these, and about parameters that are trained later.
      data: what it learns from and is judged by; None in a plan without data.
      batch: shapes, dtypes and shardings of a global training batch.
      optimizer: built for the model's parameters.
      make: batch -> state, freshly initialised; traced once, for its shapes and to be run.
      abstract: shapes, dtypes and shardings of the state; nothing is allocated.
    """

    config: ml_collections.ConfigDict
    from_data: dict
    loaded: pretrained_init.Loaded
    init_from: dict
    notes: tuple[str, ...]
    task: Task
    mesh: Mesh
    data: TrainingData | None
    batch: dict[str, jax.ShapeDtypeStruct]
    optimizer: Optimizer
    make: Callable
    abstract: State

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """This host's slices of the training batches from `start_step` on."""
        config, options = self.config, self.config.data
        return loader.train_batches(
            self.data.train, seed=config.seed, batch_size=config.train.batch_size,
            host=sharding.rows_of_host(self.mesh), augment=self.data.augment, start_step=start_step,
            shuffle=options.shuffle, window=options.window, max_bad_samples=options.max_bad_samples,
            threads=options.threads, workers=options.workers, prefetch=options.prefetch,
        )  # fmt: skip

    def eval_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """This host's slices of the evaluation batches, the same at every evaluation."""
        config, options = self.config, self.config.data
        return loader.eval_batches(
            self.data.validation, batch_size=config.train.eval_batch_size, host=sharding.rows_of_host(self.mesh),
            limit=options.eval_examples, max_bad_samples=options.max_bad_samples, threads=options.threads,
            prefetch=options.prefetch,
        )  # fmt: skip

    @property
    def val_datasets(self) -> tuple[str, ...]:
        """The names of the datasets that evaluation tells apart; empty where there is one."""
        return tuple(getattr(self.data.validation, "names", ()))

    @without_collection()
    def init(self, batch) -> State:
        """Fresh state on the devices, sharded as it is made; what other runs give is read, and never made."""
        wanted = set(self.loaded.names)
        if not wanted:
            places = _shardings(self.abstract)
            return jax.jit(self.make, out_shardings=places, compiler_options=quick_options(self.mesh))(batch)
        averages = {n: a for n, a in ema.averages_of(self.abstract.variables).items() if n in wanted}
        left = wanted | set(averages.values())
        places = _shardings(_without(self.abstract, left))
        own = jax.jit(lambda batch: _without(self.make(batch), left), out_shardings=places,
                      compiler_options=quick_options(self.mesh))  # fmt: skip
        state, shapes = own(batch), tree.flatten(self.abstract.variables)
        read = self.loaded.read({name: shapes[name] for name in wanted})
        copy = jax.jit(ema.start, out_shardings={average: shapes[average].sharding for average in averages.values()})
        read |= copy({average: read[name] for name, average in averages.items()})
        return state.replace(variables=tree.unflatten({**state.variables, **read}))

    def meta(self) -> dict:
        """What a checkpoint must carry for inference, besides the step."""
        init_sources = {"init_from": self.init_from} if self.init_from else {}
        return {"config": config_lib.to_json(self.config), **self.data.meta, **init_sources}


@without_collection()
def prepare(
    config: ml_collections.ConfigDict, saved: Mapping | None = None, devices: Sequence | None = None
) -> Setup:  # fmt: skip
    """Builds all parts and refuses, before anything is written or compiled, what cannot work.

    Args:
      config: the run's.
      saved: the metadata of the checkpoint that the run goes on from: numbers are scaled as they were then, and the
        runs of `config.init_from` are not needed any more.
      devices: those of a plan, see `plan`, which only compiles for them: it needs neither data, where `config.data`
        names none, nor weights for what is frozen. None: all that there are.
    """
    config_keys.check_numbers(config)
    make_patience(config.train)
    trackers.check(config.train.trackers)
    profiler.check(config.train.get("profile"))
    make_losses(config.train)
    SaveTimer(config.train.get("save_minutes"))
    SaveTimer(config.train.get("fast_minutes"), "fast_minutes")
    Watchdog(config.train.get("hang_minutes"), pathlib.Path())

    # 1. What other runs give to begin with: the model's fields that come from them, later their weights.
    config, sources, init_sources, notes = _begin(config, saved)

    # 2. The devices, and that the batches can be split among them.
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch_size(mesh, config.train.batch_size, config.train.micro_batches)
    sharding.check_batch_size(mesh, config.train.eval_batch_size, name="eval_batch_size")

    # 3. The data. A plan compiles for devices that are not at hand, where the data often are not either.
    data = None
    if devices is not None and not names_data(config.data) and config.data.get("text_length", 0) is None:
        raise UserError("data.text_length=None takes what the data need, and config.data names none: give a number")
    if devices is None or names_data(config.data):
        data = open_training(config.data, batch_size=config.train.batch_size, saved=saved)
        notes += [*data.notes]
        if data.text_length is not None:
            config = config.copy_and_resolve_references()
            with config.unlocked(), config.ignore_type():
                config.data.text_length = data.text_length
        notes += pretrained_init.check_scales(sources, config, data.train, MODELS)

    # 4. The model, completed by what only the data can tell, and its shapes; nothing is allocated.
    config, from_data = _complete(config, data and data.train)
    task = Task(config_lib.build(MODELS, config.model), config.loss)
    example = task.model.example(1) if data is None else data.train.batch([])
    batch = _batch_shapes(example, config.train.batch_size, mesh)
    optimizer_of = functools.partial(make_optimizer, config.optim, config.train.steps)
    make = functools.partial(init_state, task, optimizer_of, config.seed)
    with on_mesh(mesh):  # As when it is run: JAX keeps the trace for that.
        abstract = jax.eval_shape(make, batch)

    # 5. Who is trained, who begins with the values of other runs, and where everything lies.
    optimizer = make_optimizer(config.optim, config.train.steps, abstract.variables["params"])
    check_gradients(optimizer, abstract.variables["params"], task.model.without_gradient)
    loaded = pretrained_init.match(sources, abstract.variables, pretrained_init.exceptions(config))
    if saved is None and devices is None:
        pretrained_init.check_frozen(abstract.variables["params"], optimizer, loaded.names)
    sharding.check_replication(abstract, mesh, config.mesh.rules)
    places = sharding.shardings(abstract, mesh, config.mesh.rules)
    placed = jax.tree.map(lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
                          abstract, places)  # fmt: skip
    notes = (*notes, *loaded.lines, *_group_lines(optimizer, config.train.steps))
    return Setup(config, from_data, loaded, init_sources, notes, task, mesh, data, batch, optimizer, make,
                 placed)  # fmt: skip


def make_patience(train: Mapping) -> Patience:
    """Early stopping as `config.train` asks for it; configs of runs from before it existed do not."""
    mode = train.get("best_mode") or "max"
    return Patience(train.get("best_metric"), train.get("patience"), train.get("min_delta") or 0.0, mode)


def make_losses(train: Mapping) -> Losses:
    """The judgement of losses as `config.train` asks for it."""
    return Losses(train.get("spike_factor"), train.get("on_spike") or "stop")


@without_collection()
def lower_step(setup: Setup) -> tuple[jax.stages.Lowered, Flops]:
    """Traces the training step, which donates its state, and counts its FLOPs, on all devices together."""
    train = setup.config.train
    step = make_train_step(setup.task, setup.optimizer, seed=setup.config.seed, micro_batches=train.micro_batches,
                           grad_dtype=setup.config.mesh.get("grad_dtype"))  # fmt: skip
    places = (_shardings(setup.abstract), None)
    traced, flops = trace_step(step, setup.abstract, setup.batch, donate_argnums=0, out_shardings=places)
    return traced.lower(), flops


def compile_step(setup: Setup) -> tuple[Callable, Flops]:
    """Compiles the training step ahead of the loop, with a log line before and the memory it needs after.

    Returns:
      The compiled step, which donates its state, and its FLOPs.
    """
    # The folder once more: the line in which the command names it comes before there is a log.txt.
    kept = jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir
    LOG.info("compiling the training step for %d device(s)%s ...", setup.mesh.size,
             f", which the next start of this config finds in {kept}" if kept else "")  # fmt: skip
    start = time.perf_counter()
    lowered, flops = lower_step(setup)
    compiled = lowered.compile()
    LOG.info("compiled in %.0f s; %s", time.perf_counter() - start, memory_line(compiled))
    return compiled, flops


def memory_line(compiled) -> str:
    """Per-device memory of a compiled step, in words."""
    memory = compiled.memory_analysis()
    if memory is None:
        return "this backend gives no memory analysis"
    state, temporary = memory.argument_size_in_bytes / GIB, memory.temp_size_in_bytes / GIB
    return f"memory per device: {state:.2f} GiB state and batch + {temporary:.2f} GiB temporary"


def parameter_table(setup: Setup) -> str:
    """One line per parameter: name, shape, dtype, where it lies on the mesh, and its weight decay, whether it is frozen
    or begins later."""
    import re

    rows = []
    for name, leaf in tree.flatten(setup.abstract.variables["params"]).items():
        start = setup.optimizer.starts.get(name)
        trained = "" if re.fullmatch(setup.optimizer.trainable, name) else " frozen"
        trained = trained if start is None else f" after step {start}"
        if frozen := setup.optimizer.frozen_layers.get(name):
            trained += f" first {frozen} layers frozen"
        decay = f" decay {setup.optimizer.decayed[name]:g}" if name in setup.optimizer.decayed else ""
        rows.append(f"  {name:70s} {str(leaf.shape):24s} {leaf.dtype} {leaf.sharding.spec}{decay}{trained}")
    total = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(setup.abstract.variables["params"]))
    return "\n".join([*rows, f"  {total:,} parameters"])


def quick_options(mesh: Mesh) -> dict | None:
    """Options of the compiler for what runs once or a few times, where compiling takes longer than running: on CPUs a
    fifth of the time for the initial state of a convolutional LAQ. None elsewhere."""
    if mesh.devices.flat[0].platform != "cpu":
        return None
    # jaxlib 0.11 always has the emitters, and refuses options that it does not know.
    emitters = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True, **emitters}


def on_mesh(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Makes `mesh` the one that raw partition specs refer to."""
    return jax.set_mesh(mesh)


def _group_lines(optimizer: Optimizer, steps: int) -> list[str]:
    """What becomes of the parameters of each group, and who begins later."""
    counts = collections.Counter(optimizer.starts.values())
    too_late = lambda start: f", and this run ends with step {steps}" if start >= steps else ""  # noqa: E731
    later = [f"updates of {counts[s]} parameters begin after step {s}{too_late(s)}" for s in sorted(counts)]
    return [f"optim.groups[{number}] {group}" for number, group in enumerate(optimizer.groups)] + later


def _begin(config: ml_collections.ConfigDict, saved: Mapping | None) -> tuple:
    """The config with the fields of models that come from other runs; these runs, where they were, lines about them.

    A run that goes on from its checkpoint has them all there.
    """
    paths = pretrained_init.paths_of(config)
    if saved is None:
        sources = tuple(pretrained_init.open_source(prefix, path) for prefix, path in paths.items())
        specs = {source.prefix: (source, source.meta["config"]["model"]) for source in sources}
        init_sources = {source.prefix: {"path": str(source.path), "step": source.step} for source in sources}
    else:
        model = saved.get("config", {}).get("model", {})
        sources, init_sources = (), saved.get("init_from", {})
        specs = {prefix: ("this run's checkpoint", model[prefix]) for prefix in paths if prefix in model}
        specs |= {"": ("this run's checkpoint", model)} if "" in paths else {}
    whole = specs.pop("", None)
    config, lines = pretrained_init.fill_model(config, specs)
    if whole is not None:
        config, more = pretrained_init.take_fields(config, *whole)
        lines += more
    return config, sources, init_sources, lines


def _complete(config: ml_collections.ConfigDict, train_data) -> tuple[ml_collections.ConfigDict, dict]:
    """The config with the model's fields that only the data can tell, and these fields alone."""
    if train_data is None:
        return config, {}
    completed = config_lib.complete(MODELS, config.model, train_data, config.seed)
    before, after = (config_lib.to_json(ml_collections.ConfigDict(dict(m))) for m in (config.model, completed))
    filled = {name: value for name, value in after.items() if name not in before or before[name] != value}
    if filled:
        config = config.copy_and_resolve_references()
        with config.unlocked(), config.ignore_type():
            config.model = ml_collections.ConfigDict(completed)
    return config, filled


def _shardings(abstract: State) -> State:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def _without(state: State, names: set[str]) -> State:
    """The state without some of its variables, which are then flat, {name: leaf}."""
    return state.replace(variables={n: leaf for n, leaf in tree.flatten(state.variables).items() if n not in names})


def _batch_shapes(example: Mapping, batch_size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    place = sharding.batch_sharding(mesh)
    for name, values in example.items():
        if values.dtype.kind == "U":
            raise ConfigError(f"the samples' '{name}' is text, which no device takes; set data.text_tokenizer")
    return {name: jax.ShapeDtypeStruct((batch_size, *values.shape[1:]), values.dtype, sharding=place)
            for name, values in example.items()}  # fmt: skip
