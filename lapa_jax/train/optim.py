"""Optimizers as data: a schedule, and settings per parameter by regular expression.

`config.optim.groups = ((regex, settings or None), ...)`: the first expression that matches a parameter's whole name
decides; settings override the common ones for that group, None freezes it. Every parameter must match. Frozen ones
are stored as `config.optim.frozen_dtype`; `config.optim.ema_decay` asks for moving averages of the others.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lapa_jax.core import tree
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import did_you_mean

SCHEDULES = ("constant", "cosine")
OF_ALL = ("clip_norm", "groups", "ema_decay", "frozen_dtype")
# What weight decay is for: the weights of linear maps and tables of embeddings, by the last part of their names. Scales
# of norms, biases, queries, positions and codebooks are vectors whose size means something; decay would draw it to 0.
# The number of axes does not tell: layers of a stack lie on an axis of their own, so that a bias has two.
WEIGHTS = re.compile(r"(.*/)?(kernel|maps|lora_[ab]|embedding|code_embedding|codes)")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one group of parameters.

    Attributes:
      learning_rate: the peak learning rate.
      schedule: "constant" or "cosine", after a linear warm-up from 0 over `warmup_steps`.
      final_learning_rate: where the cosine ends at the last step of the run.
      b1, b2, eps: Adam's.
      weight_decay: decoupled (AdamW, Loshchilov and Hutter 2019), of `WEIGHTS` alone; 0 is plain Adam.
      start_step: steps of the run before the first update of the group. Until then its parameters and moments stay what
        they are and its gradients do not count in the clipped norm; the schedule begins there, and ends with the run.
    """

    learning_rate: float
    schedule: str = "constant"
    warmup_steps: int = 0
    final_learning_rate: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    start_step: int = 0


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A gradient transformation with what the loop logs and splits by.

    Attributes:
      transform: the optax transformation over the trainable parameters.
      learning_rate: step -> learning rate of the first trainable group.
      trainable: regular expression of the parameter names that are trained.
      starts: {parameter: step} of those whose updates begin later than the run.
      ema_decay: share of its moving average that each update of a trained parameter keeps; None without averages.
      frozen_dtype: what parameters that are not trained are stored as.
      decayed: {parameter: rate} of those with weight decay.
    """

    transform: optax.GradientTransformation
    learning_rate: optax.Schedule
    trainable: str
    starts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    ema_decay: float | None = None
    frozen_dtype: str = "float32"
    decayed: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Later(NamedTuple):
    """Attributes: count: int32 scalar, steps done. inner: the state of what begins later."""

    count: jax.Array
    inner: object


def make_optimizer(config: Mapping, steps: int, params) -> Optimizer:
    """Builds the optimizer that `config.optim` describes.

    Args:
      config: Settings fields, "clip_norm" (global norm of all trainable gradients, None is off), "groups", and
        optionally "ema_decay" and "frozen_dtype".
      steps: length of the run, where the schedules end.
      params: parameters or their shapes; only names matter.

    Raises:
      ConfigError: an unknown setting, a parameter that no group matches, or nothing to train.
    """
    common = {k: v for k, v in dict(config).items() if k not in OF_ALL}
    decay, dtype = config.get("ema_decay"), config.get("frozen_dtype") or "float32"
    _check_storage(decay, dtype)
    groups = [(regex, None if own is None else _settings({**common, **own})) for regex, own in config["groups"]]
    labels = {name: _first_match(name, groups) for name in tree.flatten(params)}
    used = sorted({i for i in labels.values() if groups[i][1] is not None})
    if not used:
        raise ConfigError("config.optim.groups freezes every parameter; nothing is left to train")
    names = [re.escape(name) for name, i in labels.items() if i in used]
    transforms = {str(i): _adam(groups[i][1], steps) for i in used}
    label_tree = tree.unflatten({name: str(i) for name, i in labels.items() if i in used})
    chain = [optax.partition(transforms, label_tree)]
    starts = {name: groups[i][1].start_step for name, i in labels.items() if i in used and groups[i][1].start_step}
    if config["clip_norm"] is not None:
        chain.insert(0, optax.clip_by_global_norm(config["clip_norm"]))
        if starts:
            chain.insert(0, _silence(starts))
    rate = _logged_rate(groups[used[0]][1], steps)
    rates = {name: groups[i][1].weight_decay for name, i in labels.items() if i in used and WEIGHTS.fullmatch(name)}
    decayed = {name: rate for name, rate in rates.items() if rate}
    return Optimizer(optax.chain(*chain), rate, "|".join(names), starts, decay, dtype, decayed)


def reset_moments(opt_state, reset: Mapping[str, jax.Array]):
    """Zeroes Adam's moments where `reset` is True.

    Args:
      opt_state: the state of an optimizer of this file.
      reset: parameter name -> bool array that broadcasts against the parameter.

    A replaced codebook row that kept the momentum of the dead code would be dragged away from where it was put.
    """
    if not reset:
        return opt_state

    def zero(path, leaf):
        # The moments of a parameter lie under a path that ends in the parameter's own name.
        names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        for name, mask in reset.items():
            parts = name.split(tree.SEPARATOR)
            if names[-len(parts) :] == parts:
                return jnp.where(mask, jnp.zeros_like(leaf), leaf)
        return leaf

    return jax.tree_util.tree_map_with_path(zero, opt_state)


def _check_storage(decay: float | None, dtype: str) -> None:
    if decay is not None and not (isinstance(decay, float) and 0 < decay < 1):
        raise ConfigError(f"config.optim.ema_decay is {decay!r}; give a number between 0 and 1, such as 0.999, or None")
    if dtype not in tree.STORED:
        raise ConfigError(f"config.optim.frozen_dtype is '{dtype}'{did_you_mean(dtype, tree.STORED)}")


def _settings(values: Mapping) -> Settings:
    known = {field.name for field in dataclasses.fields(Settings)}
    for key in values:
        if key not in known:
            raise ConfigError(f"config.optim has no setting '{key}'{did_you_mean(key, known)}")
    settings = Settings(**values)
    if settings.schedule not in SCHEDULES:
        raise ConfigError(f"config.optim.schedule is '{settings.schedule}'{did_you_mean(settings.schedule, SCHEDULES)}")
    start = settings.start_step
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise ConfigError(f"config.optim: start_step is {start!r}; give a number of steps, 0 or more")
    return settings


def _first_match(name: str, groups) -> int:
    for index, (regex, _) in enumerate(groups):
        if re.fullmatch(regex, name):
            return index
    raise ConfigError(f"parameter '{name}' matches no expression of config.optim.groups; end them with ('.*', {{}})")


def _logged_rate(settings: Settings, steps: int) -> optax.Schedule:
    schedule, start = _schedule(settings, steps), settings.start_step
    return (lambda step: jnp.where(step < start, 0.0, schedule(jnp.maximum(step - start, 0)))) if start else schedule


def _schedule(settings: Settings, steps: int) -> optax.Schedule:
    """The learning rate by the group's own steps, which `start_step` of the run's come before."""
    steps = steps - settings.start_step
    peak, warmup = settings.learning_rate, settings.warmup_steps
    after = optax.constant_schedule(peak)
    if settings.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), settings.final_learning_rate / peak)
    if not warmup:
        return after
    # From peak/warmup rather than from 0: the first step must not be wasted.
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1), after], [warmup - 1])


def _adam(settings: Settings, steps: int) -> optax.GradientTransformation:
    parts = [optax.scale_by_adam(settings.b1, settings.b2, settings.eps)]
    if settings.weight_decay:
        parts.append(optax.add_decayed_weights(settings.weight_decay, mask=_weights))
    whole = optax.chain(*parts, optax.scale_by_learning_rate(_schedule(settings, steps)))
    return _later(whole, settings.start_step) if settings.start_step else whole


def _weights(params):
    """Which leaves of a tree of parameters decay."""
    name = lambda path: tree.SEPARATOR.join(str(entry.key) for entry in path)  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, _: WEIGHTS.fullmatch(name(path)) is not None, params)


def _later(transform: optax.GradientTransformation, start: int) -> optax.GradientTransformation:
    """`transform` from step `start` on as from the first; before, updates are 0 and its state is left alone."""

    def update(updates, state: Later, params=None):
        begun = state.count >= start
        new, inner = transform.update(updates, state.inner, params)
        new = jax.tree.map(lambda x: jnp.where(begun, x, jnp.zeros_like(x)), new)
        inner = jax.tree.map(lambda x, old: jnp.where(begun, x, old), inner, state.inner)
        return new, Later(optax.safe_increment(state.count), inner)

    return optax.GradientTransformation(lambda p: Later(jnp.zeros((), jnp.int32), transform.init(p)), update)


def _silence(starts: Mapping[str, int]) -> optax.GradientTransformation:
    """Gradients of 0 for parameters until their updates begin, so that the global norm is that of the others."""

    def update(updates, state: Later, params=None):
        mute = lambda name, x: jnp.where(state.count < starts.get(name, 0), jnp.zeros_like(x), x)  # noqa: E731
        return tree.map_named(mute, updates), Later(optax.safe_increment(state.count), ())

    return optax.GradientTransformation(lambda p: Later(jnp.zeros((), jnp.int32), ()), update)
