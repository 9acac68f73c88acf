"""Fields that declare what they may hold: choices and bounds beside the type, one line of explanation in the docstring.

    dtype: Literal["float32", "bfloat16"] = "float32"
    depth: Count = 8
    dropout: Share = 0.1
    action_dim: FromData = None

`check` refuses any other value by one message for each kind of mistake, so that a class checks in its own code only how
its fields fit together. What a field means is read from the "Attributes:" of the class by `describe`.
"""

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from lapa_jax.core.errors import UserError, did_you_mean


class Range(NamedTuple):
    """Bounds of a number: `least` and `most` may be reached, `above` and `below` may not. None is no bound."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number keeps the bounds; NaN keeps none."""
        inside = [self.least is None or value >= self.least, self.most is None or value <= self.most,
                  self.above is None or value > self.above, self.below is None or value < self.below]  # fmt: skip
        return all(inside) and not math.isnan(value)

    def __str__(self) -> str:
        words = (("at least", self.least), ("at most", self.most), ("more than", self.above), ("less than", self.below))
        return " and ".join(f"{word} {bound}" for word, bound in words if bound is not None)


Count = Annotated[int, Range(1)]
"""A whole number of at least 1."""
Share = Annotated[float, Range(0, below=1)]
"""A number of at least 0 and less than 1."""
Dtype = Literal["float32", "bfloat16"]
"""What a model computes in; its parameters are float32."""
Remat = Literal["none", "dots", "full"]
"""What the backward pass keeps, see `nn.transformer.REMAT_POLICIES`."""
FILLED = "filled in"
"""Marks a field that may be None in a config, and is filled in from the data before the model is built."""
FromData = Annotated[int | None, Range(1), FILLED]
"""A `Count` of that kind."""


def check(instance) -> None:
    """`check_values` of all fields of a dataclass."""
    names = [field.name for field in dataclasses.fields(instance)]
    check_values(type(instance), {name: getattr(instance, name) for name in names})


def check_values(cls: type, values: Mapping[str, object]) -> None:
    """Refuses values of fields that these do not declare.

    Checked are `Literal`, numbers annotated with a `Range`, and tuples of these; other types are not.

    Raises:
      UserError: a value that is none of the choices, no whole number where one is declared, or out of its bounds.
    """
    for field in dataclasses.fields(cls):
        if field.name in values and (wrong := _problem(field.name, field.type, values[field.name])):
            raise UserError(wrong)


def accepts(annotation, value) -> bool:
    """Whether a value is of an annotated type, with ints for floats; bounds and choices are left to `check`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return accepts(arguments[0], value)
    if origin in (typing.Union, types.UnionType):
        return any(accepts(each, value) for each in arguments)
    if origin is Literal:
        return any(type(value) is type(each) for each in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        return len(each) == len(value) and all(map(accepts, each, value))
    if annotation is float:
        return type(value) in (int, float)
    return annotation is typing.Any or (value is None if annotation in (None, types.NoneType)
                                        else type(value) is annotation)  # fmt: skip


def describe(cls: type) -> dict[str, str]:
    """{field: what it means}, the first sentence of its entry among the "Attributes:" of the class or of a base.

    Entries begin with one name or several, "dim, depth: of the encoder.", and may follow each other in a line.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    sentences = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        # "Attributes:", or "Attributes: those of `Base`, and"
        text = re.split(r"\bAttributes(?:: those of .*$|[^:\n]*:)", text, maxsplit=1, flags=re.MULTILINE)[-1]
        text = re.sub(r"\s+", " ", text)
        entries = [match for match in re.finditer(r"(?:(?<=[.;] )|(?<=^ ))(\w+(?:, \w+)*): ", text)
                   if set(match[1].split(", ")) <= names]  # fmt: skip
        for entry, following in zip(entries, [*entries[1:], None]):
            said = text[entry.end() : following.start() if following else None]
            sentence = re.split(r"(?<=[.;]) (?=[A-Z])", said)[0].strip().rstrip(".;")
            sentences |= dict.fromkeys(entry[1].split(", "), sentence)
    return sentences


def _problem(name: str, annotation, value) -> str | None:
    """What is wrong with a value, as one line; None where nothing is."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal and value not in arguments:
        return f"{name} is '{value}'{did_you_mean(value, arguments)}"
    if origin is tuple and isinstance(value, tuple):
        each = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        problems = (_problem(f"{name}[{i}]", a, v) for i, (a, v) in enumerate(zip(each, value)))
        return next(filter(None, problems), None)
    if value is None and origin is Annotated and FILLED in arguments:
        return f"{name} is None; the data tell it, where there are some"
    bounds = next((each for each in arguments[1:] if isinstance(each, Range)), None) if origin is Annotated else None
    if bounds is None:
        return None
    types_ = typing.get_args(arguments[0]) or (arguments[0],)
    if value is None and types.NoneType in types_:
        return None
    whole = float not in types_
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if number and bounds.holds(value):
        return None
    return f"{name} is {value!r}; " + (f"it must be a whole number of {bounds}" if whole else f"give {bounds}")
