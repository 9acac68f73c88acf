"""The contract of a simulator, and the one place that finds a simulator by its name.

A simulator is one module with a class `Env(Simulator)`: a module of `lapa_jax.sim`, found by its name ("push_table"),
or a file of your own, found by its path ("my/reach.py"). What follows a colon is for the simulator ("gym:PushT-v0").
docs/howto/add_a_simulator.md is a worked example.
"""

import abc
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import pathlib
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean


class ScriptedPolicy(Protocol):
    """A policy that reads the simulator's state."""

    def act(self) -> np.ndarray:
        """The next action, f32[A]."""


class Simulator(abc.ABC):
    """An environment with instructions. Equal seeds give equal episodes, whatever the environment did before.

    The keyword arguments of `__init__` are the simulator's options: each has a default and becomes a flag of
    launch/eval.py and tools/record_sim.py. `size`, the edge of the square images in pixels, must be one of them. An
    `__init__` with one argument without a default, the first, is given what follows the colon of the name.

    What a simulator declares, on the class or on the object:
      packages: PyPI packages that it runs on; their versions are kept with the episodes, as others may give others.
      extra: the extra of lapa_jax that installs them; None if there is none.
      help: {option: a line of help}.
      tasks: names for `reset`.
      fps: actions a second. max_steps: actions after which an episode has failed.
      action_low, action_high: f32[A], the bounds of actions.
      additive: whether actions of neighbouring steps add up (displacements); else a slower policy's action is held, and
        the mean stands for several.
      cameras: V, how many images `observe` gives.
      images: whether `observe` is to give any. Whoever needs the state alone sets it to False, as drawing takes long; a
        simulator that draws all the same is only slower.
      instruction: what the policy is asked to do in this episode.
      expert: method (seed, noise=0.0) -> `ScriptedPolicy` for the current episode, whose noise has random numbers of
        its own; None without a scripted expert.
      notes: lines that are printed before episodes run, about what the simulator chose by itself.
    """

    name = "this simulator"  # `make` replaces it by the name that was asked for
    packages: tuple[str, ...] = ()
    extra: str | None = None
    help: Mapping[str, str] = {}
    tasks: tuple[str, ...]
    fps: float
    max_steps: int
    action_low: np.ndarray
    action_high: np.ndarray
    additive = False
    cameras = 1
    images = True
    instruction: str
    expert: Callable[..., ScriptedPolicy] | None = None
    notes: tuple[str, ...] = ()

    @abc.abstractmethod
    def reset(self, seed: int, task: str | None = None) -> None:
        """Starts the episode of `seed`; `task` None lets the seed choose."""

    @abc.abstractmethod
    def observe(self) -> dict[str, np.ndarray]:
        """{"image": uint8[H, W, 3], of several cameras uint8[V, H, W, 3], where `images` says so; "state": f32[S], if
        there is one}."""

    @abc.abstractmethod
    def step(self, action: np.ndarray) -> None:
        """Applies one action f32[A]."""

    @abc.abstractmethod
    def success(self) -> bool:
        """Whether the instruction is fulfilled now, which ends the episode."""

    def ended(self) -> bool:
        """Whether the episode is over without success before `max_steps`, as when a robot has fallen."""
        return False

    def check_images(self) -> None:
        """A `UserError` if `observe` can give no image; asked before anything is written."""
        return

    def close(self) -> None:
        """Frees what `observe` holds."""
        return

    def versions(self) -> dict[str, str]:
        """What the episodes depend on besides the options: {package: version}, and {file: SHA-256} of a file outside of
        this package."""
        versions = {package: importlib.metadata.version(package) for package in self.packages}
        module = type(self).__module__
        return versions if module.startswith("lapa_jax.") else versions | hash_of(sys.modules[module].__file__)


DECLARED = ("tasks", "fps", "max_steps", "action_low", "action_high")
"""What has no default."""


def simulators() -> tuple[str, ...]:
    """Names of the modules of `lapa_jax.sim` that are simulators."""
    import lapa_jax.sim

    names = sorted(module.name for module in pkgutil.iter_modules(lapa_jax.sim.__path__) if not module.ispkg)
    modules = {name: importlib.import_module(f"lapa_jax.sim.{name}") for name in names}
    return tuple(name for name, module in modules.items() if _is_simulator(module))


def _is_simulator(module) -> bool:
    made = getattr(module, "Env", None)
    return isinstance(made, type) and issubclass(made, Simulator)


def env_class(name: str) -> type[Simulator]:
    """The class `Env` of the simulator `name`; nothing that it runs on is imported.

    Raises:
      UserError: there is none of that name, or the file defines none.
    """
    module_name = name.partition(":")[0]
    if module_name.endswith(".py"):
        module = load_file(module_name)
        if not _is_simulator(module):
            raise UserError(f"{module_name} defines no class Env(lapa_jax.sim.env.Simulator)")
    elif module_name in simulators():
        module = importlib.import_module(f"lapa_jax.sim.{module_name}")
    else:
        hint = did_you_mean(module_name, simulators())
        raise UserError(f"there is no environment '{name}'{hint} (a file of your own is given by its path, sim.py)")
    return module.Env


@functools.cache
def load_file(path: str):
    """The module of a Python file, which is run once a process."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"file {path} does not exist")
    name = f"{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hash_of(path: str) -> dict[str, str]:
    """{name of the file: SHA-256 of its content}."""
    file = pathlib.Path(path)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}


def options_of(made: type[Simulator]) -> dict[str, inspect.Parameter]:
    """The options of a simulator's class, by name."""
    parameters = inspect.signature(made).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.default is not parameter.empty}


def check_installed(name: str, packages: Sequence[str], extra: str | None = None) -> None:
    """A `UserError` that says what to install if one of the packages that `name` needs is absent."""
    for package in packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            wanted = f"'lapa_jax[{extra}]'" if extra else package
            raise UserError(f"{name} needs {package}, which is not installed; run: pip install {wanted}") from None


def make(name: str, **options) -> Simulator:
    """The environment `name`, with options of its simulator.

    Raises:
      UserError: no such simulator or option, a package that is not installed, or an `Env` that declares too little.
    """
    made, (simulator, colon, argument) = env_class(name), name.partition(":")
    declared = options_of(made)
    for option in options:
        if option not in declared:
            raise UserError(f"the environment {name} has no option '{option}'{did_you_mean(option, declared)}")
    if missing := sorted(made.__abstractmethods__):
        raise UserError(f"the Env of {simulator} does not define {', '.join(missing)}")
    check_installed(simulator, made.packages, made.extra)
    needs_argument = len(inspect.signature(made).parameters) > len(declared)
    if needs_argument != bool(argument):
        raise UserError(f"{simulator} wants its environment's name: --env {simulator}:NAME" if needs_argument else
                        f"{simulator} takes nothing after its name, got '{colon}{argument}'")  # fmt: skip
    env = made(argument, **options) if needs_argument else made(**options)
    for attribute in DECLARED:
        if not hasattr(env, attribute):
            raise UserError(f"the Env of {simulator} does not say its {attribute}; see lapa_jax/sim/env.py")
    env.name = name
    return env


def expert_of(env: Simulator, seed: int, noise: float = 0.0) -> ScriptedPolicy:
    """The scripted expert of the current episode; a `UserError` if the simulator has none."""
    if env.expert is None:
        raise UserError(f"{env.name} has no scripted expert; a policy (--run) and --policy random can act in it")
    return env.expert(seed, noise)
