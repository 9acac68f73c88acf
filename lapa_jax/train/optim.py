"""Optimizers as data: a schedule, and settings per parameter by regular expression.

`config.optim.groups = ((regex, settings or None), ...)`: the first expression that matches a parameter's whole name
decides; settings override the common ones for that group, None freezes it. Every parameter must match an expression,
and every expression must decide for a parameter. `freeze_layers` freezes the first layers of stacks, whose parameters
are one array for all layers. Frozen parameters are stored as `config.optim.frozen_dtype`; `config.optim.ema_decay` asks
for moving averages of the others.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lapa_jax.core import tree
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import did_you_mean
from lapa_jax.core.layers import STACK

SCHEDULES = ("constant", "cosine", "step_decay")
OF_ALL = ("clip_norm", "groups", "ema_decay", "frozen_dtype")
# The last expression of most configs: it may find nothing left to decide.
REST = ".*"
# What weight decay is for: the weights of linear maps and tables of embeddings, by the last part of their names. Scales
# of norms, biases, queries, positions and codebooks are vectors whose size means something; decay would draw it to 0.
# The number of axes does not tell: layers of a stack lie on an axis of their own, so that a bias has two.
WEIGHTS = re.compile(r"(.*/)?(kernel|maps|lora_[ab]|embedding|code_embedding|codes)")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one group of parameters.

    Attributes:
      learning_rate: the peak learning rate.
      schedule: "constant", "cosine" or "step_decay", after a linear warm-up from 0 over `warmup_steps`.
      final_learning_rate: where the cosine ends at the last step of the run.
      boundaries: of "step_decay": the steps after which the rate is multiplied by `decay_factor`, ascending.
      decay_factor: of "step_decay", between 0 and 1.
      b1, b2, eps: Adam's.
      weight_decay: decoupled (AdamW, Loshchilov and Hutter 2019), of `WEIGHTS` alone; 0 is plain Adam.
      start_step: steps of the run before the first update of the group. Until then its parameters and moments stay what
        they are and its gradients do not count in the clipped norm; the schedule begins there, and ends with the run.
      freeze_layers: how many of the first layers of each stack are frozen: they have no updates, no moments and, where
        a whole stack is, no gradients either.
    """

    learning_rate: float
    schedule: str = "constant"
    warmup_steps: int = 0
    final_learning_rate: float = 0.0
    boundaries: tuple[int, ...] = ()
    decay_factor: float = 0.1
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    start_step: int = 0
    freeze_layers: int = 0


class Group(NamedTuple):
    """An entry of `config.optim.groups`.

    Attributes:
      pattern: its regular expression.
      settings: None where it freezes.
      shapes: {name: shape} of the parameters that it decides for.
    """

    pattern: str
    settings: Settings | None
    shapes: Mapping[str, tuple[int, ...]]

    def __str__(self) -> str:
        """What becomes of how many parameters, and which parts of the model they are of."""
        numbers = sum(map(math.prod, self.shapes.values()))
        parts = ", ".join(dict.fromkeys(name.partition(tree.SEPARATOR)[0] for name in self.shapes))
        what = "frozen"
        if self.settings is not None:
            what = f"learning rate {self.settings.learning_rate:g}"
            if self.settings.freeze_layers:
                what += f", the first {self.settings.freeze_layers} layers frozen"
        return f"'{self.pattern}': {what}: {len(self.shapes)} parameters, {numbers:,} numbers ({parts})"


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A gradient transformation with what the loop logs and splits by.

    Attributes:
      transform: the optax transformation over what is trained, the first part of `split`.
      learning_rate: step -> learning rate of the first trainable group.
      groups: the entries of `config.optim.groups`.
      trainable: regular expression of the names of parameters that are trained, at least some of their layers.
      frozen_layers: {parameter: how many of its first layers are frozen} of those that are trained in part.
      starts: {parameter: step} of those whose updates begin later than the run.
      ema_decay: share of its moving average that each update of a trained parameter keeps; None without averages.
      frozen_dtype: what parameters that are not trained are stored as.
      decayed: {parameter: rate} of those with weight decay.
    """

    transform: optax.GradientTransformation
    learning_rate: optax.Schedule
    groups: tuple[Group, ...]
    trainable: str
    frozen_layers: Mapping[str, int]
    starts: Mapping[str, int]
    ema_decay: float | None
    frozen_dtype: str
    decayed: Mapping[str, float]

    def split(self, params: Mapping) -> tuple[dict, dict]:
        """Parameters, or their shapes, as (trained, frozen); of stacks that are trained in part both hold a part."""
        trained, frozen = map(tree.flatten, tree.split(params, self.trainable))
        for name, count in self.frozen_layers.items():
            leaf = trained[name]
            if isinstance(leaf, jax.ShapeDtypeStruct):
                frozen[name] = leaf.update(shape=(count, *leaf.shape[1:]))
                trained[name] = leaf.update(shape=(leaf.shape[0] - count, *leaf.shape[1:]))
            else:
                frozen[name], trained[name] = leaf[:count], leaf[count:]
        return tree.unflatten(trained), tree.unflatten(frozen)

    def grad_norms(self, grads: Mapping) -> dict[str, jax.Array]:
        """The norm of all gradients, "grad_norm", and where several groups are trained of those of each,
        "grad_norm_<number>", by its place in `config.optim.groups`."""
        flat = tree.flatten(grads)
        trained = {i: [flat[name] for name in group.shapes if name in flat] for i, group in enumerate(self.groups)}
        norms = {f"grad_norm_{i}": optax.tree.norm(leaves) for i, leaves in trained.items() if leaves}
        return {"grad_norm": optax.tree.norm(grads), **(norms if len(norms) > 1 else {})}

    def frozen_stacks(self, params: Mapping) -> dict[str, int]:
        """{path of a stack, "llm/decoder/layers": how many of its first layers nothing of is trained}."""
        counts: dict[str, int] = {}
        for name, leaf in tree.flatten(params).items():
            if match := STACK.match(name):
                frozen = self.frozen_layers.get(name, 0) if re.fullmatch(self.trainable, name) else leaf.shape[0]
                counts[match[1]] = min(counts.get(match[1], frozen), frozen)
        return {stack: count for stack, count in counts.items() if count}


def check_gradients(optimizer: Optimizer, params: Mapping, without: Sequence[str]) -> None:
    """Refuses to train parameters that no loss reaches: weight decay alone would change them.

    Args:
      params: the parameters or their shapes. without: regular expressions of such parameters.
    """
    trained = tree.flatten(optimizer.split(params)[0])
    for regex in without:
        if names := [name for name in trained if re.fullmatch(regex, name)]:
            raise ConfigError(f"config.optim.groups trains {len(names)} parameters that no loss reaches ({names[0]}, "
                              f"...); freeze them by an entry in front, ({regex!r}, None)")


def join(trained: Mapping, frozen: Mapping) -> dict:
    """The inverse of `Optimizer.split`."""
    first, rest = tree.flatten(frozen), tree.flatten(trained)
    both = {name: jnp.concatenate([first[name], rest[name]]) for name in first.keys() & rest.keys()}
    return tree.unflatten({**first, **rest, **both})


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
      params: parameters or their shapes.

    Raises:
      ConfigError: an unknown setting, a parameter that no expression matches, an expression that decides for none, or
        nothing to train.
    """
    decay, dtype = config.get("ema_decay"), config.get("frozen_dtype") or "float32"
    _check_storage(decay, dtype)
    groups = _groups(config, tree.flatten(params))
    trained = [(i, group) for i, group in enumerate(groups) if group.settings is not None and group.shapes]
    if not trained:
        raise ConfigError("config.optim.groups freezes every parameter; nothing is left to train")
    settings = {name: group.settings for _, group in trained for name in group.shapes}
    labels = {name: str(i) for i, group in trained for name in group.shapes}
    transforms = {str(i): _adam(group.settings, steps) for i, group in trained}
    chain = [optax.partition(transforms, tree.unflatten(labels))]
    starts = {name: chosen.start_step for name, chosen in settings.items() if chosen.start_step}
    if config["clip_norm"] is not None:
        if not config["clip_norm"] > 0:
            raise ConfigError(f"config.optim.clip_norm is {config['clip_norm']}; give more than 0, or None: no limit")
        chain.insert(0, _clip_by_global_norm(config["clip_norm"]))
        if starts:
            chain.insert(0, _silence(starts))
    return Optimizer(
        transform=optax.chain(*chain),
        learning_rate=_logged_rate(trained[0][1].settings, steps),
        groups=groups,
        trainable="|".join(map(re.escape, labels)),
        frozen_layers={name: chosen.freeze_layers for name, chosen in settings.items()
                       if chosen.freeze_layers and STACK.match(name)},
        starts=starts,
        ema_decay=decay,
        frozen_dtype=dtype,
        decayed={name: chosen.weight_decay for name, chosen in settings.items()
                 if chosen.weight_decay and WEIGHTS.fullmatch(name)},
    )  # fmt: skip


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


def _groups(config: Mapping, params: Mapping) -> tuple[Group, ...]:
    """The entries of `config.optim.groups` with the parameters, {name: array or shape}, that each decides for."""
    common = {k: v for k, v in dict(config).items() if k not in OF_ALL}
    entries = [(regex, own, None if own is None else _settings({**common, **own})) for regex, own in config["groups"]]
    for regex, *_ in entries:
        try:
            re.compile(regex)
        except re.error as error:
            raise ConfigError(f"config.optim.groups: '{regex}' is no regular expression ({error})") from None
    decided: list[dict] = [{} for _ in entries]
    for name, leaf in params.items():
        matching = [i for i, (regex, *_) in enumerate(entries) if re.fullmatch(regex, name)]
        if not matching:
            raise ConfigError(f"parameter '{name}' matches no expression of config.optim.groups; end them with "
                              "('.*', {})")
        decided[matching[0]][name] = tuple(leaf.shape)
    for (regex, own, settings), shapes in zip(entries, decided, strict=True):
        if not shapes and regex != REST:
            _refuse_idle(regex, params)
        if settings is not None and settings.freeze_layers:
            _check_layers(regex, own, settings.freeze_layers, shapes)
    if (count := common.get("freeze_layers")) and not any(map(STACK.match, params)):
        raise ConfigError(f"config.optim.freeze_layers is {count}, and the model has no stack of layers")
    return tuple(Group(regex, settings, shapes) for (regex, _, settings), shapes in zip(entries, decided, strict=True))


def _refuse_idle(regex: str, params: Iterable[str]) -> None:
    """Refuses an expression that decides for no parameter: what it is to freeze would be trained without a word."""
    if any(re.fullmatch(regex, name) for name in params):
        raise ConfigError(f"config.optim.groups: '{regex}' decides for no parameter: expressions before it match all "
                          "that it matches; put it before them")
    raise ConfigError(f"config.optim.groups: '{regex}' matches no parameter{tree.closest(regex, params)}")


def _check_layers(regex: str, own: Mapping, count: int, shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuses a number of frozen layers that the parameters of a group do not have, or that leaves none."""
    depths = {match[1]: shape[0] for name, shape in shapes.items() if (match := STACK.match(name))}
    if not depths and "freeze_layers" in own:
        raise ConfigError(f"config.optim.groups: '{regex}' sets freeze_layers={count}, and matches no stack of layers "
                          "('.../layers/...')")
    for stack, depth in depths.items():
        if count >= depth:
            raise ConfigError(f"config.optim: freeze_layers is {count}, '{stack}' has {depth} layers; freeze fewer, or "
                              f"all of them: ('{re.escape(stack)}/.*', None)")


def _settings(values: Mapping) -> Settings:
    names = {field.name for field in dataclasses.fields(Settings)}
    for key in values:
        if key not in names:
            raise ConfigError(f"config.optim has no setting '{key}'{did_you_mean(key, names)}")
    settings = Settings(**values)
    if settings.schedule not in SCHEDULES:
        raise ConfigError(f"config.optim.schedule is '{settings.schedule}'{did_you_mean(settings.schedule, SCHEDULES)}")
    for name in ("start_step", "freeze_layers"):
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            what = "steps" if name == "start_step" else "layers"
            raise ConfigError(f"config.optim: {name} is {value!r}; give a number of {what}, 0 or more")
    if settings.schedule == "step_decay":
        _check_step_decay(settings)
    return settings


def _check_step_decay(settings: Settings) -> None:
    steps = tuple(settings.boundaries)
    whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
    if not steps or not whole or steps[0] < max(settings.warmup_steps, 1) or sorted(set(steps)) != list(steps):
        raise ConfigError(f"config.optim.boundaries is {settings.boundaries!r}; schedule 'step_decay' needs ascending "
                          "steps after the warm-up, such as (10000, 20000)")
    if not 0 < settings.decay_factor < 1:
        raise ConfigError(f"config.optim.decay_factor is {settings.decay_factor!r}; schedule 'step_decay' multiplies "
                          "the learning rate by it: give a number between 0 and 1, such as 0.1")


def _clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Scales all gradients down so that the norm of all together is at most `limit` (Pascanu et al. 2013).

    By one factor: optax divides each gradient by the norm, and XLA keeps each quotient, which is one more small program
    for every parameter to compile and one more pass over the gradients.
    """

    def clip(updates, params=None):
        factor = jnp.minimum(1.0, limit / optax.tree.norm(updates))
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), updates)

    return optax.stateless(clip)


def _logged_rate(settings: Settings, steps: int) -> optax.Schedule:
    schedule, start = _schedule(settings, steps), settings.start_step
    return (lambda step: jnp.where(step < start, 0.0, schedule(jnp.maximum(step - start, 0)))) if start else schedule


def _schedule(settings: Settings, steps: int) -> optax.Schedule:
    """The learning rate by the group's own steps, which `start_step` of the run's come before."""
    steps = steps - settings.start_step
    peak, warmup = settings.learning_rate, settings.warmup_steps
    # From peak/warmup rather than from 0: the first step must not be wasted. So the peak is reached a step earlier.
    before = max(warmup - 1, 0)
    if settings.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif settings.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), settings.final_learning_rate / peak)
    else:
        scales = {step - before: settings.decay_factor for step in settings.boundaries}
        after = optax.piecewise_constant_schedule(peak, scales)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, before), after], [before])


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
