"""Exported models, whose file format is that of `lapa_jax.core.pretrained`, and what a model's variables look like."""

import functools

import jax

from lapa_jax.core.pretrained import CONFIG_FILE, WEIGHTS_FILE, load_pretrained, save_pretrained

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "expected_variables", "load_pretrained", "save_pretrained"]


def expected_variables(model) -> dict:
    """Shapes and dtypes of all variables of a model, without computing any."""
    return jax.tree.map(lambda shape: shape, _shapes(model))


@functools.lru_cache(maxsize=16)
def _shapes(model) -> dict:
    """Kept: tracing a model takes seconds, and programs that compare checkpoints load the same one again and again."""
    rngs = {name: jax.random.key(0) for name in ("params", "noise", "dropout")}
    return dict(jax.eval_shape(lambda batch: model.init(rngs, batch, train=True), model.example(1)))
