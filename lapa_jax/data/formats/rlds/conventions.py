"""Conventions: which fields of an RLDS step are pictures, action, state and instruction.

RLDS fixes where steps lie, not what an action is. A `Convention` says so for one dataset; shapes come from the data's
own features.json. `oxe.CONVENTIONS` holds the published datasets, `load` also takes a JSON file with the same fields.
Whatever the source, the gripper's dimension of an action becomes 1 = open, 0 = closed; states and all other dimensions
stay as published.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.files import read_json
from lapa_jax.data.formats.base import parse_key
from lapa_jax.data.formats.instructions import like_instruction


class Field(NamedTuple):
    """A field of a step (or of an episode): its kind, "image", "number", "text" or "other", and its shape."""

    kind: str
    shape: tuple[int | None, ...] = ()


def relative(commands: np.ndarray) -> np.ndarray:
    """Openness from commands that move the gripper: above 0.1 closes, below -0.1 opens, between changes nothing.

    Before the first command the gripper is in the state which that command leaves; without any it is open. (0.1 is the
    dead zone that octo and OpenVLA use for the Google robot.)
    """
    moves = np.where(commands < -0.1, 1.0, np.where(commands > 0.1, 0.0, np.nan))
    given = np.flatnonzero(~np.isnan(moves))
    if not len(given):
        return np.ones_like(moves)
    newest = np.searchsorted(given, np.arange(len(moves)), side="right") - 1
    return np.where(newest < 0, 1 - moves[given[0]], moves[given[newest]])


GRIPPERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "open": lambda g: g,
    "closed": lambda g: 1 - g,
    "open_signed": lambda g: (g + 1) / 2,
    "closed_signed": lambda g: (1 - g) / 2,
    "closing": relative,
}
"""What the stored gripper means, and how it becomes 1 = open, 0 = closed: 1 is open (0 closed), 1 is closed (0 open),
1 is open (-1 closed), 1 is closed (-1 open), positive closes and negative opens."""

RANGES = {"open": (0.0, 1.0), "closed": (0.0, 1.0), "open_signed": (-1.0, 1.0), "closed_signed": (-1.0, 1.0)}
"""What the stored values lie in, by their meaning; commands that close and open may be of any size."""
_BEYOND = 0.05
"""How far sensors and interpolation may lead beyond a range, as a share of it."""


def openness(values: np.ndarray, means: str) -> np.ndarray:
    """Stored values f[T] of a gripper as 1 = open, 0 = closed.

    Args:
      values: of one episode. means: a key of `GRIPPERS`.

    Raises:
      ValueError: values outside of the range that this meaning has; tells those that were seen.
    """
    if means in RANGES:
        low, high = RANGES[means]
        least, most, room = float(values.min()), float(values.max()), _BEYOND * (high - low)
        if least < low - room or most > high + room:
            remedy = "'closing' is for commands of any size"
            if least >= -1 - room and most <= 1 + room:
                remedy = f"'{means}_signed' is for -1 to 1"
            elif least >= 0:
                remedy = "no meaning is for widths and counts, rewrite them as 0 to 1"
            raise ValueError(
                f"its gripper holds {least:g} to {most:g}, gripper_means '{means}' is for {low:g} to {high:g}; "
                f"{remedy}; correct gripper_means in the convention (--convention FILE.json)"
            )
    return GRIPPERS[means](values)


@dataclasses.dataclass(frozen=True)
class Convention:
    """How one dataset is read. Keys are paths within a step, joined by "/"; `key[a:b]` takes a part of a vector.

    Attributes:
      cameras: picture fields; the first is the main camera. () for data without pictures.
      action: number fields that make up the action, in order; () where there is none.
      action_names: of the action's dimensions.
      action_units: of the action's dimensions; () where not known.
      gripper: dimension of the action that holds the gripper; None where there is none.
      gripper_means: what its stored values mean, a key of `GRIPPERS`.
      state: number fields that make up the state, in order; () where there is none.
      state_names: of the state's dimensions.
      language: fields of the instruction; the first that is not empty counts. A field may belong to the episode.
      fps: control frequency in Hz; None where not known.
      drop_first: whether the first step is left out where its action, the gripper aside, is zero.
      covers: names under which the dataset is published.
    """

    cameras: tuple[str, ...]
    action: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    action_units: tuple[str, ...] = ()
    gripper: int | None = None
    gripper_means: str = "open"
    state: tuple[str, ...] = ()
    state_names: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    fps: float | None = None
    drop_first: bool = False
    covers: tuple[str, ...] = ()


def load(
    wanted: str | None, dataset: str, fields: Mapping[str, Field], table: Mapping[str, Convention]
) -> tuple[str, Convention]:
    """The convention of a dataset.

    Args:
      wanted: a name in the table, the path of a JSON file, or None for the one that covers `dataset`.
      dataset: the name that dataset_info.json gives.
      table: the known conventions.
      fields: of a step and of the episode, from features.json.

    Returns:
      Its name, and the convention; its keys are in `fields`.

    Raises:
      UserError: there is none, or it does not fit the data. Shows a JSON file to start from.
    """
    if wanted is None:
        names = [name for name, c in table.items() if dataset in c.covers]
        if not names:
            raise UserError(f"no convention is known for the dataset '{dataset}'; {_advice(fields)}")
        # two releases may share a name: the one whose fields are there is meant
        fitting = [name for name in names if not _problem(table[name], fields)]
        name = (fitting or names)[0]
        convention, where = table[name], f"convention '{name}'"
    elif wanted in table:
        name, convention, where = wanted, table[wanted], f"convention '{wanted}'"
    elif wanted.endswith(".json"):
        name, where = pathlib.Path(wanted).name, f"convention file {wanted}"
        values = read_json(wanted)
        convention = from_json(values, where)
        _check_said(values, fields, where)
    else:
        raise UserError(f"unknown convention '{wanted}'{did_you_mean(wanted, table)}; or pass a .json file")
    if problem := _problem(convention, fields):
        raise UserError(f"{where} does not fit this dataset: {problem}; {_advice(fields)}")
    return name, convention


def from_json(values, where: str) -> Convention:
    """A convention from the values of a JSON file; a wrong field is a `UserError` that begins with `where`."""
    if not isinstance(values, dict):
        raise UserError(f"{where} must hold a JSON object with the fields of a convention")
    fields = {field.name: field for field in dataclasses.fields(Convention)}
    for key in values:
        if key not in fields:
            raise UserError(f"{where}: there is no field '{key}'{did_you_mean(key, fields)}")
    if "cameras" not in values:
        raise UserError(f"{where}: the field 'cameras' is missing ([] where there are no pictures)")
    return Convention(**{key: _value(fields[key], value, f"{where}: '{key}'") for key, value in values.items()})


def _check_said(values: Mapping, fields: Mapping[str, Field], where: str) -> None:
    """A convention that does not speak of the action or the instruction of data that have them leaves them out by
    oversight: an empty list says that it is meant."""
    for key in ("action", "language"):
        held = [name for name in template(fields)[key] if key == "action" or like_instruction(name)]
        if key not in values and held:
            raise UserError(f"{where} does not say '{key}', the data have {', '.join(held)}: name it, or write []")


def _value(field: dataclasses.Field, value, where: str):
    if field.name == "gripper":
        if value is not None and (type(value) is not int or value < 0):
            raise UserError(f"{where} must be a dimension counted from 0, or null; it is {json.dumps(value)}")
    elif field.name == "fps":
        if value is not None and (type(value) not in (int, float) or not 0 < value < 1e6):
            raise UserError(f"{where} must be a frequency in Hz, or null; it is {json.dumps(value)}")
    elif field.name == "drop_first":
        if type(value) is not bool:
            raise UserError(f"{where} must be true or false; it is {json.dumps(value)}")
    elif field.name == "gripper_means":
        if value not in GRIPPERS:
            raise UserError(f"{where} must be one of {', '.join(GRIPPERS)}; it is {json.dumps(value)}")
    else:
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise UserError(f"{where} must be a list of strings; it is {json.dumps(value)}")
        return tuple(value)
    return value


def width(key: str, fields: Mapping[str, Field]) -> int:
    """How many numbers `key` gives a step. A key that does not fit is a ValueError."""
    name, part = parse_key(key)
    if name not in fields or fields[name].kind != "number":
        numbers = [n for n, field in fields.items() if field.kind == "number"]
        raise ValueError(f"it has no number field '{name}'{did_you_mean(name, numbers)}")
    if None in fields[name].shape:
        raise ValueError(f"the length of '{name}' varies")
    size = int(np.prod(fields[name].shape))
    if part.stop is not None and not 0 <= part.start < part.stop <= size:
        raise ValueError(f"'{key}' is outside of its {size} values")
    return size if part.stop is None else part.stop - part.start


def choose_state(
    convention: Convention, fields: Mapping[str, Field], wanted: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The state's fields and the names of its dimensions.

    Args:
      fields: of a step.
      wanted: option `--state`: "all" for those of the convention, or names of number fields separated by commas, with
        or without "observation/".
    """
    if wanted == "all":
        return convention.state, convention.state_names
    numbers = [key for key, field in fields.items() if field.kind == "number"]
    keys = []
    for word in (part.strip() for part in wanted.split(",")):
        name = word if parse_key(word)[0] in numbers else f"observation/{word}"
        if parse_key(name)[0] not in numbers:
            names = [key.removeprefix("observation/") for key in numbers]
            raise UserError(f"the data have no state '{word}' (--state){did_you_mean(word, names)}")
        keys.append(name)
    try:
        return tuple(keys), _default_names(keys, fields)
    except ValueError as error:
        raise UserError(f"--state {wanted}: {error}") from None


def _problem(convention: Convention, fields: Mapping[str, Field]) -> str:
    """Why a convention does not fit the fields of a dataset; "" where it does."""
    for key in convention.cameras:
        if key not in fields or fields[key].kind != "image":
            pictures = [n for n, field in fields.items() if field.kind == "image"]
            return f"it has no picture field '{key}'{did_you_mean(key, pictures) if pictures else ''}"
    for key in convention.language:
        if key not in fields or fields[key].kind not in ("text", "number"):
            texts = [n for n, field in fields.items() if field.kind == "text"]
            return f"it has no text field '{key}'{did_you_mean(key, texts) if texts else ''}"
    for name in ("action", "state"):
        try:
            size = sum(width(key, fields) for key in getattr(convention, name))
        except ValueError as error:
            return f"{name}: {error}"
        for kind in ("names", "units"):
            words = getattr(convention, f"{name}_{kind}", ())
            if words and len(words) != size:
                return f"'{name}_{kind}' has {len(words)} entries for {size} dimensions"
        if name == "action" and convention.gripper is not None and convention.gripper >= size:
            return f"'gripper' is dimension {convention.gripper}, the action has {size} (counted from 0)"
    return ""


def template(fields: Mapping[str, Field]) -> dict:
    """A convention to start from, as JSON values: every picture, all that is called action, state or instruction."""
    numbers = [k for k, f in fields.items() if f.kind == "number" and None not in f.shape]
    pictures = [k for k, f in fields.items() if f.kind == "image"]
    action = sorted(k for k in numbers if k.split("/")[0] == "action")
    texts = [k for k, f in fields.items() if f.kind == "text"]
    language = [k for k in texts if "instruction" in k or "language" in k] or texts
    state = [k for k in numbers if k.split("/")[-1] in ("state", "proprio", "robot_state")][:1]
    values = Convention(
        cameras=tuple(sorted(pictures, key=lambda k: (bool(re.search("wrist|hand|gripper", k)), k))),
        action=tuple(action),
        action_names=_default_names(action, fields),
        state=tuple(state),
        state_names=_default_names(state, fields),
        language=tuple(language[:1]),
    )
    plain = dataclasses.asdict(values)
    del plain["covers"]
    return plain


def _default_names(keys: Sequence[str], fields: Mapping[str, Field]) -> tuple[str, ...]:
    names = []
    for key in keys:
        last, size = key.split("/")[-1], width(key, fields)
        names += [last] if size == 1 else [f"{last}_{i}" for i in range(size)]
    return tuple(names)


def _advice(fields: Mapping[str, Field]) -> str:
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in template(fields).items())
    others = sorted(f"{k} {list(f.shape)}" for k, f in fields.items() if f.kind == "number")
    return (
        "write what its fields mean into a file, starting from the one below, and pass --convention FILE.json "
        f"(gripper: dimension of the action, counted from 0; gripper_means: {', '.join(GRIPPERS)}; fps in Hz): "
        f"{{\n{lines}\n}}\nits number fields are: {', '.join(others) or 'none'}"
    )
