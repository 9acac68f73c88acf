"""What of an environment of gymnasium is the image, the state, success and the instruction: from a file, or by itself.

A mapping is a YAML file of the fields of `GymMap`, or a Python file with a class `Map(GymMap)`, which can also change
how environments are made. Those in `lapa_jax/sim/maps` are found by the environment's name.
"""

import dataclasses
import difflib
import importlib
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import yaml

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.sim.env import load_file

SHIPPED = pathlib.Path(__file__).parent / "maps"
SUCCESS_KEYS = ("is_success", "success")
INSTRUCTION_KEYS = ("instruction", "language_instruction", "task_description")
"""Keys of `info` that are taken without a mapping."""


class GymMap:
    """The fields of a mapping of the environment `name`; None is chosen by itself, see `complete`.

    A key is one of the observation, "a.b" within nested ones; "observation" is the whole, where it is no dictionary.

    Attributes:
      envs: names of the environments that a mapping in `lapa_jax/sim/maps` is for.
      packages: PyPI packages that they need.
      make: keyword arguments of `gymnasium.make`.
      image: a key, several for several cameras, or "render" for `env.render()`.
      state: a key, or several whose numbers are joined; [] for none.
      success: {"info": key}, with "at_least" for a number; {"reward": least reward of a step}; or "terminated".
      instruction: the text, or {"info": key}.
      action: {"low": numbers, "high": numbers} where the action space has no bounds.
      fps: actions a second. max_steps: length of an episode. additive: see `Simulator`.
    """

    envs: Sequence[str] = ()
    packages: Sequence[str] = ()
    make: Mapping = {}
    image: str | Sequence[str] | None = None
    state: str | Sequence[str] | None = None
    success: str | Mapping | None = None
    instruction: str | Mapping | None = None
    action: Mapping | None = None
    fps: float | None = None
    max_steps: int | None = None
    additive: bool = False

    def __init__(self, name: str):
        self.name = name

    def tasks(self) -> tuple[str, ...]:
        """The tasks of the environment, which take turns."""
        return (re.split("[/:]", self.name)[-1],)

    def make_env(self, task: str, size: int):
        """A `gymnasium.Env`, or another object with its `reset`, `step` and `close`.

        Args:
          task: one of `tasks()`. size: edge of images in pixels, for environments that render in any size.
        """
        import gymnasium

        module, _, name = self.name.rpartition(":")
        try:
            if module or "/" in name:  # a namespace is by convention the package that registers it
                importlib.import_module(module or name.partition("/")[0])
        except ModuleNotFoundError as error:
            raise UserError(f"gym:{self.name} needs the module {error.name}, which is not installed") from None
        if name not in gymnasium.registry:
            close = difflib.get_close_matches(name, gymnasium.registry, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "a module that registers it goes before: gym:MODULE:NAME"
            raise UserError(f"gymnasium has no environment '{name}'; {hint}")
        made = gymnasium.spec(name).entry_point
        if isinstance(made, str):
            made = gymnasium.envs.registration.load_env_creator(made)
        renders = "rgb_array" in getattr(made, "metadata", {}).get("render_modes", ())
        options = {"disable_env_checker": True} | ({"render_mode": "rgb_array"} if renders else {}) | dict(self.make)
        if self.max_steps is not None:
            options["max_episode_steps"] = self.max_steps
        try:
            return gymnasium.make(name, **options)
        except Exception as error:  # constructors raise whatever they like
            raise UserError(f"gymnasium.make('{name}', {options}) fails: {type(error).__name__}: {error}") from error


FIELDS = tuple(GymMap.__annotations__)
TYPES = {"envs": list, "packages": list, "make": dict, "image": str | list, "state": str | list, "success": str | dict,
         "instruction": str | dict, "action": dict, "fps": int | float, "max_steps": int, "additive": bool}  # fmt: skip
"""Of the values in YAML."""


def find(name: str, env_map: str | None) -> tuple[GymMap, pathlib.Path | None]:
    """The mapping of an environment, and the file that it is from, if any.

    Args:
      name: of the environment. env_map: a YAML or Python file, or the name of a mapping in `lapa_jax/sim/maps`; None:
        the one there that is for this environment, or else an empty one.

    Raises:
      UserError: there is no such file or name, or it is no mapping.
    """
    shipped = {path.stem: path for path in sorted(SHIPPED.iterdir()) if path.suffix in (".yaml", ".py")}
    del shipped["__init__"]
    if env_map is None:
        for path in shipped.values():
            chosen = load(path, name)
            for full_name in chosen.envs:
                if name in (full_name, full_name.rpartition("/")[2]):
                    chosen.name = full_name
                    return chosen, path
        return GymMap(name), None
    path = shipped.get(env_map, pathlib.Path(env_map))
    if path.suffix not in (".yaml", ".yml", ".py"):
        hint = did_you_mean(env_map, shipped)
        raise UserError(f"--env_map {env_map} is no .yaml or .py file, and no mapping of that name is shipped{hint}")
    return load(path, name), path


def load(path: pathlib.Path, name: str) -> GymMap:
    """The mapping in a file, for the environment `name`."""
    if path.suffix == ".py":
        if path.parent == SHIPPED:
            module = importlib.import_module(f"lapa_jax.sim.maps.{path.stem}")
        else:
            module = load_file(str(path))
        made = getattr(module, "Map", None)
        if not (isinstance(made, type) and issubclass(made, GymMap)):
            raise UserError(f"{path} defines no class Map(lapa_jax.sim.gym_map.GymMap)")
        return made(name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--env_map {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"--env_map {path} is no list of 'field: value' lines")
    chosen = GymMap(name)
    for field, value in values.items():
        if field not in FIELDS:
            raise UserError(f"--env_map {path} has the field '{field}'{did_you_mean(str(field), FIELDS)}")
        if not isinstance(value, TYPES.get(field, object)):
            raise UserError(f"--env_map {path}: {field} cannot be {value!r}; see docs/howto/add_a_simulator.md")
        setattr(chosen, field, value)
    return chosen


@dataclasses.dataclass(frozen=True)
class Reading:
    """How an environment is read: a `GymMap` with nothing left open.

    Attributes:
      images: keys, one a camera; empty if there is none, and then `no_image` says why. states: keys, joined.
      success: ("info", key, at_least or None), ("reward", least) or ("terminated",).
      instruction: ("text", text) or ("info", key).
      low, high: f32[A].
      notes: a line about the mapping and what was chosen without it.
    """

    images: tuple[str, ...]
    no_image: str
    states: tuple[str, ...]
    success: tuple
    instruction: tuple[str, str]
    low: np.ndarray
    high: np.ndarray
    fps: float
    max_steps: int
    notes: tuple[str, ...]


def complete(chosen: GymMap, env, file: pathlib.Path | None) -> Reading:
    """Reads an environment once, from a reset and one step, and fills in what a mapping leaves open.

    Images are the only uint8[H, W, 3] of the observation, or else `render()`; the state is its only vector of floats;
    success is "is_success" or "success" of `info`; the instruction is "instruction" of `info`, or else the
    environment's name in words; bounds, rate and length are those that the environment declares.

    Args:
      chosen: the mapping. env: as of its `make_env`. file: that of the mapping, for the notes.

    Raises:
      UserError: a key that is absent, with those that are there; or what cannot be chosen, with the field to give.
    """
    name = f"gym:{chosen.name}"
    low, high = _bounds(name, chosen, env)
    observation, first_info = env.reset(seed=0)
    _, reward, _, _, info = env.step(to_space(env, (low + high) / 2))
    parts, infos, notes = leaves(observation), {**first_info, **info}, []
    images, no_image = _choose_images(name, chosen, env, parts, notes)
    states = _choose_states(name, chosen, parts, notes)
    success = _choose_success(name, chosen, infos, notes)
    instruction = _choose_instruction(name, chosen, infos, notes)
    fps = chosen.fps or getattr(env, "metadata", {}).get("render_fps")
    if not fps:
        raise UserError(f"{name} declares no render_fps; give fps, its actions a second, in --env_map")
    spec = getattr(env, "spec", None)
    max_steps = chosen.max_steps or (spec and spec.max_episode_steps)
    if not max_steps:
        raise UserError(f"{name} declares no max_episode_steps; give max_steps, the length of an episode, in --env_map")
    note = "; ".join([f"{name} is read {f'by the mapping {file.stem}' if file else 'without a mapping'}", *notes])
    return Reading(images, no_image, states, success, instruction, low, high, float(fps), int(max_steps), (note,))


def leaves(values, prefix: str = "") -> dict[str, np.ndarray]:
    """{"a.b": array} of a nested dictionary, {"observation": array} of anything else."""
    if not isinstance(values, Mapping):
        return {prefix or "observation": np.asarray(values)}
    parts = {}
    for key, value in values.items():
        parts |= leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return parts


def to_space(env, action: np.ndarray) -> np.ndarray:
    """An action f32[A] in the shape, the type and the bounds of an environment's action space."""
    space = getattr(env, "action_space", None)
    return action if space is None else np.clip(action.reshape(space.shape).astype(space.dtype), space.low, space.high)


def _listed(parts: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{key} {part.dtype}{list(part.shape)}" for key, part in sorted(parts.items())) or "none"


def _bounds(name: str, chosen: GymMap, env) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest action, f32[A]."""
    space = getattr(env, "action_space", None)
    if space is not None and not hasattr(space, "low"):
        raise UserError(f"{name} takes {space} actions; policies give continuous ones (a Box)")
    if chosen.action:
        try:
            bounds = np.asarray([chosen.action["low"], chosen.action["high"]], np.float32)
            low, high = (np.broadcast_to(bound, bound.shape if space is None else space.shape) for bound in bounds)
        except (KeyError, ValueError, TypeError):
            wanted = "low and high, as many numbers each" if space is None else f"low and high for {space}"
            raise UserError(f"--env_map: action is {chosen.action}; give {wanted}") from None
    elif space is None:
        raise UserError(f"{name} declares no action_space; give action: low and high in --env_map")
    else:
        low, high = space.low, space.high
    low, high = (np.asarray(bound, np.float32).reshape(-1) for bound in (low, high))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UserError(f"{name} has actions without bounds ({space}); give action: low and high in --env_map")
    return low, high


def _choose_images(name: str, chosen: GymMap, env, parts: Mapping, notes: list[str]) -> tuple[tuple[str, ...], str]:
    """Keys of the images; and why there is none, if there is none."""
    renders = getattr(env, "render_mode", None) == "rgb_array"
    if chosen.image is not None:
        keys = (chosen.image,) if isinstance(chosen.image, str) else tuple(chosen.image)
        for key in keys:
            if key == "render":
                if not renders:
                    raise UserError(f"{name} has no render mode 'rgb_array'; give a key of the observation as image in "
                                    f"--env_map; it has: {_listed(parts)}")  # fmt: skip
            elif key not in parts:
                raise UserError(f"{name} has no '{key}' in its observation, the image of the mapping; it has: "
                                f"{_listed(parts)}")  # fmt: skip
            elif not _is_image(parts[key]):
                raise UserError(f"{name}: '{key}' is {parts[key].dtype}{list(parts[key].shape)}, an image is "
                                "uint8[H, W, 3]")  # fmt: skip
        return keys, ""
    candidates = tuple(key for key, part in parts.items() if _is_image(part))
    if len(candidates) == 1 or (renders and not candidates):
        keys = candidates or ("render",)
        notes.append(f"the image is {keys[0]}")
        return keys, ""
    why = "several images" if candidates else "no image uint8[H, W, 3] in its observation, and does not render"
    return (), f"{name} has {why}; give image in --env_map; its observation has: {_listed(parts)}"


def _is_image(part: np.ndarray) -> bool:
    return part.dtype == np.uint8 and part.ndim == 3 and part.shape[-1] == 3


def _choose_states(name: str, chosen: GymMap, parts: Mapping, notes: list[str]) -> tuple[str, ...]:
    """Keys whose numbers are the state."""
    if chosen.state is not None:
        keys = (chosen.state,) if isinstance(chosen.state, str) else tuple(chosen.state)
        for key in keys:
            if key not in parts:
                raise UserError(f"{name} has no '{key}' in its observation, the state of the mapping; it has: "
                                f"{_listed(parts)}")  # fmt: skip
        return keys
    candidates = tuple(key for key, part in parts.items() if part.dtype.kind == "f" and part.ndim == 1)
    if len(candidates) == 1:
        notes.append(f"the state is {candidates[0]}")
        return candidates
    notes.append(f"there is no state ({'could be: ' + ', '.join(candidates) if candidates else 'no vector of floats'})")
    return ()


def _choose_success(name: str, chosen: GymMap, info: Mapping, notes: list[str]) -> tuple:
    rule = chosen.success
    if rule is None:
        for key in SUCCESS_KEYS:
            if key in info:
                notes.append(f"success is info's {key}")
                return ("info", key, None)
        raise UserError(f"{name} does not say what success is; give success in --env_map: {{info: KEY}}, {{reward: "
                        f"LEAST}} or terminated; its info has: {_listed_keys(info)}")  # fmt: skip
    if rule == "terminated":
        return ("terminated",)
    if isinstance(rule, Mapping) and set(rule) == {"reward"}:
        return ("reward", float(rule["reward"]))
    if isinstance(rule, Mapping) and "info" in rule and set(rule) <= {"info", "at_least"}:
        if rule["info"] not in info:
            raise UserError(f"{name} has no '{rule['info']}' in its info, the success of the mapping; it has: "
                            f"{_listed_keys(info)}")  # fmt: skip
        return ("info", rule["info"], rule.get("at_least"))
    raise UserError(f"--env_map: success is {rule}; give {{info: KEY}}, {{info: KEY, at_least: NUMBER}}, {{reward: "
                    "LEAST}} or terminated")  # fmt: skip


def _choose_instruction(name: str, chosen: GymMap, info: Mapping, notes: list[str]) -> tuple[str, str]:
    rule = chosen.instruction
    if isinstance(rule, str):
        return ("text", rule)
    if rule is None:
        for key in INSTRUCTION_KEYS:
            if isinstance(info.get(key), str):
                notes.append(f"the instruction is info's {key}")
                return ("info", key)
        words = re.sub(r"-v\d+$", "", re.split("[/:]", name)[-1])
        words = re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]+", " ", words).lower()
        notes.append(f"the instruction is '{words}'")
        return ("text", words)
    if not isinstance(rule, Mapping) or set(rule) != {"info"}:
        raise UserError(f"--env_map: instruction is {rule}; give a text, or {{info: KEY}}")
    if rule["info"] not in info:
        raise UserError(f"{name} has no '{rule['info']}' in its info, the instruction of the mapping; it has: "
                        f"{_listed_keys(info)}")  # fmt: skip
    return ("info", rule["info"])


def _listed_keys(info: Mapping) -> str:
    return ", ".join(sorted(map(str, info))) or "no keys"
