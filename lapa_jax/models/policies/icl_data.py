"""What the in-context policy takes from the data: dimensions, parts of a batch, and other prompts."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError

PROMPT, GOAL = "prompt_", "goal_"
SAME = {"length": "context", "prompts": "prompts", "prompt_length": "prompt_length", "future": "future"}
"""Fields of `config.data` and the model's that must agree with them."""


def from_data(spec: Mapping, source, seed: int) -> dict:
    """Fills in `action_dim`, `state_dim`, `cameras` and `image_size` where they are None, also in a tokenizer.

    Args:
      spec: the model's fields. source: samples of kind "sequences". seed: not needed.

    Raises:
      UserError: the samples do not fit the fields.
    """
    shapes = {name: values.shape[1:] for name, values in source.batch([]).items()}
    if len(shapes.get("action", ())) != 2 or "step_mask" not in shapes:
        raise UserError(f"policies.icl learns from sequences of steps, the samples hold {sorted(shapes)}: set "
                        "data.samples=sequences")
    # [T, (V,) H, W, 3]: with one camera the axis of views is left out.
    image = shapes.get("image", ())
    fields = {
        "action_dim": shapes["action"][1],
        "state_dim": shapes["state"][1] if "state" in shapes else 0,
        "cameras": (image[1] if len(image) == 5 else 1) if image else 0,
        "image_size": image[-2] if image else 0,
    }
    if image and image[-2] != image[-3]:
        raise UserError(f"the images are {image[-3]}x{image[-2]}; the policy takes square ones: set data.image_size")
    for name, value in fields.items():
        if spec.get(name) not in (None, value):
            raise UserError(f"model.{name} is {spec[name]}, the data have {value}; leave it None")
    if bool(spec.get("goal")) != (f"{GOAL}step_mask" in shapes):
        raise UserError(f"model.goal is {bool(spec.get('goal'))}, data.goal is not; set both to the same")
    _check_lengths(spec, shapes)
    tokenizer = spec.get("tokenizer")
    if isinstance(tokenizer, Mapping) and tokenizer.get("action_dim") is None:
        fields["tokenizer"] = {**tokenizer, "action_dim": fields["action_dim"], "state_dim": 0}
    return {**spec, **fields}


def _check_lengths(spec: Mapping, shapes: Mapping) -> None:
    prompt = shapes.get("prompt_action", (0, spec["prompt_length"]))
    ahead = shapes.get("future_action", (0, 1))[1]
    lengths = {"length": shapes["action"][0], "prompts": prompt[0], "prompt_length": prompt[1], "future": ahead}
    for ours, theirs in SAME.items():
        if spec[theirs] != lengths[ours]:
            raise UserError(f"model.{theirs} is {spec[theirs]} and data.{ours} {lengths[ours]}; set both to the same")


def example(model, batch_size: int) -> dict[str, np.ndarray]:
    """A batch of zeros as `model` takes it, with all masks 1."""
    window = _zeros(model, (batch_size, model.context))
    batch = {**window, **{name: np.zeros(batch_size, np.int32) for name in ("episode_id", "step", "task_id")}}
    if model.future > 1:
        ahead = (batch_size, model.context, model.future)
        batch |= {"future_action": np.zeros((*ahead, model.action_dim), np.float32),
                  "future_mask": np.ones(ahead, np.float32)}  # fmt: skip
    if model.prompts:
        prompt = _zeros(model, (batch_size, model.prompts, model.prompt_length))
        batch |= {f"{PROMPT}{name}": value for name, value in prompt.items()}
    if model.goal:
        goal = _zeros(model, (batch_size, 1))
        batch |= {f"{GOAL}{name}": value for name, value in goal.items() if not name.startswith("action")}
    return batch


def _zeros(model, lead: tuple[int, ...]) -> dict[str, np.ndarray]:
    fields = {"action": np.zeros((*lead, model.action_dim), np.float32),
              "action_mask": np.ones(lead, np.float32), "step_mask": np.ones(lead, np.float32)}  # fmt: skip
    if model.state_dim:
        fields["state"] = np.zeros((*lead, model.state_dim), np.float32)
    if model.cameras:
        views = (model.cameras,) if model.cameras > 1 else ()
        fields["image"] = np.zeros((*lead, *views, model.image_size, model.image_size, 3), np.uint8)
    return fields


def prompt_of(batch) -> dict[str, jax.Array]:
    """The prompts of a batch as one row of steps each: "state" f32 [B, P L, S] and the like."""
    prompt = {name.removeprefix(PROMPT): x for name, x in batch.items() if name.startswith(PROMPT)}
    return {name: x.reshape(x.shape[0], -1, *x.shape[3:]) for name, x in prompt.items() if x.ndim >= 3}


def goal_of(batch) -> dict[str, jax.Array]:
    """The goals of a batch as steps: "state" f32 [B, 1, S] and the like."""
    return {name.removeprefix(GOAL): x for name, x in batch.items() if name.startswith(GOAL)}


def without_prompt(batch, keep: jax.Array | None = None) -> dict[str, jax.Array]:
    """The batch with the prompts masked, all of them or in the rows where `keep` bool [B] is False."""
    keep = jnp.zeros(len(batch["action"]), bool) if keep is None else keep
    masks = [f"{PROMPT}step_mask", f"{PROMPT}action_mask"]
    return {**batch, **{name: batch[name] * keep[:, None, None] for name in masks}}


def of_another_task(batch) -> tuple[dict[str, jax.Array], jax.Array]:
    """The batch with each row's prompts replaced by those of the next row of another task.

    Returns:
      The batch, and f32 [B], 1 where there is such a row.
    """
    task, rows = batch["task_id"], jnp.arange(len(batch["task_id"]))
    # How far behind each row every other one comes, around the end of the batch, so that no row is favoured.
    behind = (rows[None] - rows[:, None]) % len(rows)
    distance = jnp.where(task[None] != task[:, None], behind, len(rows))
    other = jnp.argmin(distance, 1)
    moved = {name: x[other] for name, x in batch.items() if name.startswith(PROMPT)}
    return {**batch, **moved}, (distance.min(1) < len(rows)).astype(jnp.float32)


def supervised(model, batch, states: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What is learned from.

    Args:
      states: [B, P L + T, ...], what the actions of each step are read off.

    Returns:
      These of the N supervised steps, [B, N, ...], targets f32 [B, N, F, A], and their weights f32 [B, N, F].
    """
    target, mask = batch["action"][:, :, None], batch["action_mask"][..., None]
    if model.future > 1:
        target, mask = batch["future_action"], batch["future_mask"]
    mask = mask * batch["step_mask"][..., None]
    if not model.supervise_all_steps:
        position = jnp.arange(model.context)
        # Where the episode ends within the window the last real step counts, not the last of the padding.
        last = jnp.max(jnp.where(mask[..., 0] > 0, position, -1), 1)
        mask = mask * (position == last[:, None])[..., None]
    window = states[:, -model.context :]
    if not model.prompt_loss:
        return window, target, mask
    prompt = prompt_of(batch)
    # a step of a prompt stands for itself: the steps after it may have been left out
    ahead = jnp.arange(model.future) == 0
    prompt_mask = (prompt["action_mask"] * prompt["step_mask"])[..., None] * ahead
    actions = jnp.broadcast_to(prompt["action"][:, :, None], (*prompt_mask.shape, model.action_dim))
    return states, jnp.concatenate([actions, target], 1), jnp.concatenate([prompt_mask, mask], 1)
