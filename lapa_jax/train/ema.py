"""Moving averages of the trained parameters, which evaluation and inference use instead of them (Polyak averaging).

They are one more collection of the variables, "ema", with the names of the parameters that they follow. Only what is
here and in `checkpoint` knows of it: models never see the collection.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lapa_jax.core import tree

COLLECTION = "ema"
_PARAMS = "params" + tree.SEPARATOR


def start(trained: Mapping) -> dict:
    """The averages at the start: the parameters themselves, f32, in arrays of their own."""
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), dict(trained))


def follow(averages: Mapping, params: Mapping, decay: float) -> dict:
    """The averages after an update: `decay` of what they were and 1 - decay of the new parameters."""
    flat = tree.flatten(params)
    # This way round an average that equals its parameter stays what it is, to the bit.
    move = lambda name, x: x + (1 - decay) * (flat[name].astype(jnp.float32) - x)  # noqa: E731
    return tree.map_named(move, averages)


def averaged(variables: Mapping) -> dict:
    """The variables that a model is evaluated with: averages in place of the parameters that have one, and no "ema"."""
    plain = {name: value for name, value in variables.items() if name != COLLECTION}
    if COLLECTION in variables:
        plain["params"] = tree.unflatten(tree.flatten(variables["params"]) | tree.flatten(variables[COLLECTION]))
    return plain


def averages_of(variables: Mapping) -> dict[str, str]:
    """{"params/a": "ema/a"} of the parameters that have an average."""
    return {_PARAMS + name: COLLECTION + tree.SEPARATOR + name for name in tree.flatten(variables.get(COLLECTION, {}))}
