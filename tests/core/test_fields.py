"""Declared fields: what is refused with which words, and what docstrings say of them."""

import dataclasses
import importlib
import typing
from typing import Annotated, Literal

import pytest

from lapa_jax.core import fields
from lapa_jax.core.config import MODELS, _modules, build
from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import FILLED, Count, Dtype, FromData, Range, Remat, Share
from lapa_jax.nn.quantizers import codebook, replacement, vq
from lapa_jax.nn.transformer import REMAT_POLICIES


@dataclasses.dataclass
class Toy:
    """A toy.

    Attributes:
      kind: "a" or "b". Others do not exist.
      count, least: numbers of things; two of
        them at least.
      share: of it (see there). width: F, of all: more words. free: 5.
      sizes: ((until, every), ...) of it
    """

    kind: Literal["a", "b"] = "a"
    count: Count = 3
    least: Annotated[int, Range(2, 5)] = 2
    share: Share = 0.5
    width: Annotated[float, Range(above=0)] = 1.0
    between: Annotated[float, Range(above=0, below=1)] = 0.5
    maybe: Annotated[int | None, Range(1)] = None
    told: FromData = 1
    told_or_none: Annotated[int | None, Range(0), FILLED] = 0
    sizes: tuple[Count, ...] = (1, 2)
    pair: tuple[Count, Share] = (1, 0.5)
    free: int = 1
    told_tuple: Annotated[tuple[int, ...] | None, FILLED] = ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "c"}, "kind is 'c'; known: a, b"),
        ({"kind": None}, "kind is 'None'; known: a, b"),
        ({"count": 0}, "count is 0; it must be a whole number of at least 1"),
        ({"count": 2.0}, "count is 2.0; it must be a whole number of at least 1"),
        ({"count": True}, "count is True; it must be a whole number of at least 1"),
        ({"count": "4"}, "count is '4'; it must be a whole number of at least 1"),
        ({"count": None}, "count is None; it must be a whole number of at least 1"),
        ({"least": 6}, "least is 6; it must be a whole number of at least 2 and at most 5"),
        ({"share": 1}, "share is 1; give at least 0 and less than 1"),
        ({"share": float("nan")}, "share is nan; give at least 0 and less than 1"),
        ({"width": 0.0}, "width is 0.0; give more than 0"),
        ({"width": "1"}, "width is '1'; give more than 0"),
        ({"between": 1.0}, "between is 1.0; give more than 0 and less than 1"),
        ({"maybe": 0}, "maybe is 0; it must be a whole number of at least 1"),
        ({"told": None}, "told is None; the data tell it, where there are some"),
        ({"told": 0}, "told is 0; it must be a whole number of at least 1"),
        ({"told_or_none": None}, "told_or_none is None; the data tell it, where there are some"),
        ({"told_tuple": None}, "told_tuple is None; the data tell it, where there are some"),
        ({"sizes": (3, 0)}, "sizes[1] is 0; it must be a whole number of at least 1"),
        ({"pair": (3, 2.0)}, "pair[1] is 2.0; give at least 0 and less than 1"),
    ],
)  # fmt: skip
def test_what_is_not_declared_is_refused(values, message):
    with pytest.raises(UserError) as error:
        fields.check(Toy(**values))
    assert str(error.value) == message


@pytest.mark.parametrize(
    "values",
    [{}, {"share": 0}, {"width": 7}, {"maybe": 3}, {"told_or_none": 5}, {"sizes": ()}, {"least": 5}, {"free": "any"}],
)
def test_what_is_declared_is_accepted(values):
    fields.check(Toy(**values))


@pytest.mark.parametrize(
    ("annotation", "value", "accepted"),
    [
        (int | tuple[int, int], (3, 4), True), (int | tuple[int, int], (3, 4, 5), False), (Count, True, False),
        (str | tuple[str, ...], ("a",), True), (str | tuple[str, ...], ("a", 1), False), (str | None, None, True),
        (Share, 1, True), (float, "1", False), (Literal["a", None], "z", True), (Literal["a"], 3, False),
        (tuple[tuple[int, int], ...], ((1, 2), (3, 4)), True), (FromData, None, True), (int, None, False),
    ],
)  # fmt: skip
def test_which_types_a_field_accepts(annotation, value, accepted):
    assert fields.accepts(annotation, value) is accepted


def test_what_docstrings_say_of_fields():
    told = fields.describe(Toy)
    assert told == {"kind": '"a" or "b"', "count": "numbers of things; two of them at least",
                    "least": "numbers of things; two of them at least", "share": "of it (see there)",
                    "width": "F, of all: more words", "free": "5", "sizes": "((until, every), ...) of it"}  # fmt: skip


@pytest.mark.parametrize("name", _modules(MODELS))
def test_every_field_of_every_model_is_explained_and_its_default_is_what_it_declares(name):
    cls = importlib.import_module(f"{MODELS}.{name}").Model
    own = [field for field in dataclasses.fields(cls) if field.init and field.name not in ("parent", "name")]
    told = fields.describe(cls)
    assert [field.name for field in own if not told.get(field.name)] == []
    assert [field.name for field in own if isinstance(field.type, str)] == [], "an annotation that cannot be read"
    defaults = {field.name: field.default for field in own if field.default not in (None, dataclasses.MISSING)}
    fields.check_values(cls, defaults)


def test_declared_choices_are_those_of_the_layers_below():
    """Choices that are declared at fields of models, beside those that layers know."""
    laq = importlib.import_module(f"{MODELS}.tokenizers.laq").Model
    declared = {field.name: typing.get_args(field.type) for field in dataclasses.fields(laq)}
    assert set(typing.get_args(Remat)) == set(REMAT_POLICIES)
    assert set(declared["codebook_init"]) == set(codebook.INITS)
    assert set(declared["codebook_update"]) == set(vq.UPDATES)
    assert set(declared["replacement"]) == set(replacement.REPLACEMENTS)
    assert typing.get_args(Dtype) == ("float32", "bfloat16")


def test_a_model_within_a_model_is_checked_too():
    spec = {"name": "tokenizers.laq", "image_size": 28, "patch_size": 14, "target": "features", "output": "residual",
            "tower": {"name": "vision.dinov2", "depth": 0}}  # fmt: skip
    with pytest.raises(UserError, match="depth is 0; it must be a whole number of at least 1"):
        build(MODELS, spec)
