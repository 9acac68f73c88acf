"""In-context imitation: a transformer that sees demonstrations of a task as its prompt, and then acts.

Demonstrations and the steps so far are one sequence, state, action, state, action, ...; the action of a step is read
off at its state's token, which sees the prompt and what came before, and never the step's own action. The observation
that is to be reached can stand before all, and actions be numbers, bins or cosine coefficients. After ICRT (Fu et al.
2024), with the sizes of the specification.
"""

from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import FILLED, Count, Dtype, FromData, Range, Remat, Share
from lapa_jax.core.output import Output
from lapa_jax.models import base
from lapa_jax.models.policies import action_measures, icl_data
from lapa_jax.models.policies.icl_tokens import LEVELS, ActionEncoder, ObservationEncoder, interleave
from lapa_jax.nn.attention import Cache
from lapa_jax.nn.decoder import Decoder
from lapa_jax.nn.linear import Linear

TRANSLATION = 3
"""The first numbers of an action, whose direction the cosine loss compares."""


def action_losses(prediction: jax.Array, target: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
    """The specification's losses, each a mean over the weighted steps and all dimensions.

    "l2" is the squared error; "smooth_l1" e^2 / 2 for errors under 1 and |e| - 1/2 above; "cosine" 1 minus the cosine
    between the first three numbers, the translation, of steps that have one.

    Args:
      prediction, target: f32 [B, N, F, A]. weight: f32 [B, N, F], 1 for what counts.

    Returns:
      f32 [B] each; 0 where nothing counts.
    """
    error = prediction - target
    size = jnp.abs(error)
    smooth = jnp.where(size < 1, 0.5 * jnp.square(error), size - 0.5)
    a, b = prediction[..., :TRANSLATION], target[..., :TRANSLATION]
    # A step without translation has no direction to compare: below 1e-6 it gets the weight 0 further down.
    length = jnp.linalg.norm(b, axis=-1)
    # under the root, so that a prediction of exactly 0 has a gradient
    cosine = jnp.sum(a * b, -1) / (jnp.sqrt(jnp.sum(a * a, -1) + 1e-12) * jnp.maximum(length, 1e-6))
    return {
        "l2": _mean(jnp.square(error).mean(-1), weight),
        "smooth_l1": _mean(smooth.mean(-1), weight),
        "cosine": _mean(1 - cosine, weight * (length > 1e-6)),
    }


def _mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.sum(values * weight, (1, 2)) / jnp.maximum(jnp.sum(weight, (1, 2)), 1)


def summarize(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Of windows with their predictions, see `Model.evaluate`, in normalised units.

    Returns:
      "action_mse", "action_mae", "action_r2" (over predicting the mean of these actions; the mean over the dimensions
      that vary), and with prompts "action_mse_no_prompt" and "prompt_gain", the share of the error without a prompt
      that the right one takes away; where there are several tasks "action_mse_wrong_prompt", of the windows for which
      there was one, and "prompt_wins", the share of tasks in which the right prompt does better than a wrong one.
    """
    mask = arrays["action_mask"] > 0
    # Per window, since right and wrong prompts are compared on the same windows.
    squared = per_window(arrays, "prediction")
    metrics = action_measures.errors(arrays["prediction"][mask], arrays["action"][mask])
    if "prediction_none" not in arrays:
        return metrics
    none, wrong = per_window(arrays, "prediction_none"), per_window(arrays, "prediction_wrong")
    steps, has_wrong = mask.sum(1), arrays["has_wrong"] > 0
    without = float(np.average(none, weights=steps))
    metrics["action_mse_no_prompt"] = without
    if without > 0:
        metrics["prompt_gain"] = 1 - metrics["action_mse"] / without
    if has_wrong.any():
        better = [squared[rows].mean() < wrong[rows].mean() for rows in by_task(arrays["task_id"], has_wrong)]
        metrics["action_mse_wrong_prompt"] = float(np.average(wrong[has_wrong], weights=steps[has_wrong]))
        metrics["prompt_wins"] = float(np.mean(better))
    return metrics


def per_window(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Mean squared error f32 [N] of each window's prediction `name`, over its steps and all dimensions."""
    squared = np.square(arrays[name] - arrays["action"]).mean(-1) * arrays["action_mask"]
    return squared.sum(1) / np.maximum(arrays["action_mask"].sum(1), 1)


def by_task(task: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
    """bool [N] for each task that has a chosen window: these windows."""
    return [(task == number) & chosen for number in np.unique(task[chosen])]


from_data = icl_data.from_data


class Model(base.InContextPolicy):
    """The policy.

    Batches are those of `data.samples = "sequences"`: windows of T steps with P prompts of L steps each, normalised.
    Losses, each f32 [B], over the supervised steps: "l2", "smooth_l1" and "cosine" (see `action_losses`), or with a
    head "action", the head's; and those of a tokenizer that is trained along, with "tokenizer_" before their names.

    Attributes:
      action_dim: A, numbers of an action. state_dim: S, numbers of a state. cameras: V, images a step. image_size: side
        of the images in pixels. None is taken from the data, 0 means none.
      context: T, steps of a window. prompts: P, demonstrations in a sample. prompt_length: L, steps of each.
      future: F, actions that each step predicts, its own and those after it.
      goal: a token of the observation that acting is to lead to stands before the prompts.
      head: None for numbers; or what makes actions of each step's state, a module of `policies.heads` that reads one
        query: "bins", or "dct", for cosine coefficients of the F actions.
      dim, depth, heads, hidden: of the transformer; hidden is the width of its feed-forward.
      patch, vit_dim, vit_depth, vit_heads: of the image encoder.
      actions: what the policy sees of past actions: "raw" numbers, or the code vectors "z", "q" or "z+q" of the
        tokenizer.
      tokenizer: None, or a causal `tokenizers.mstcn`; it must be causal, or tokens would know later actions.
      train_tokenizer: train it along, by its own losses: no gradient of the policy reaches it. Else it is frozen, and
        its parameters must be frozen in `optim.groups` too.
      fifa_temperature: at inference the vector of the cluster ("q") is the mean of all, weighed by FIFA's probabilities
        at this temperature; None takes the nearest.
      causal: False lets the steps of the prompt see each other in both directions; the window stays causal.
      supervise_all_steps: all steps of the window are learned from, or the last alone.
      prompt_loss: the steps of the prompt are learned from too.
      prompt_dropout: share of training samples that lose their prompt, so that acting without one is learned as well.
      state_noise: standard deviation of the noise on states in training, in normalised units.
      dtype: "float32" or "bfloat16" computation. remat: see `nn.transformer.REMAT_POLICIES`.
    """

    action_dim: FromData = None
    state_dim: Annotated[int | None, Range(0), FILLED] = None
    cameras: Annotated[int | None, Range(0), FILLED] = None
    image_size: Annotated[int | None, Range(0), FILLED] = None
    context: Count = 10
    prompts: Annotated[int, Range(0)] = 1
    prompt_length: Count = 10
    future: Count = 1
    goal: bool = False
    head: nn.Module | None = None
    dim: Count = 512
    depth: Count = 6
    heads: Count = 8
    hidden: Count = 2048
    patch: Count = 16
    vit_dim: Count = 192
    vit_depth: Count = 4
    vit_heads: Count = 3
    actions: Literal["raw", "z", "q", "z+q"] = "raw"
    tokenizer: nn.Module | None = None
    train_tokenizer: bool = False
    fifa_temperature: float | None = None
    causal: bool = True
    supervise_all_steps: bool = True
    prompt_loss: bool = False
    prompt_dropout: Share = 0.1
    state_noise: Annotated[float, Range(0)] = 0.005
    dtype: Dtype = "float32"
    remat: Remat = "none"

    def setup(self):
        dtype = jnp.dtype(self.dtype)
        self.observe = ObservationEncoder(self.dim, self.state_dim, self.cameras, self.patch, self.vit_dim,
                                          self.vit_depth, self.vit_heads, dtype, self.remat)  # fmt: skip
        self.embed_action = ActionEncoder(self.dim, self.actions, dtype)
        # what a token is: a state or an action, of a prompt or of the window
        self.kinds = self.param("kinds", nn.initializers.normal(0.02), (2, 2, self.dim))
        self.decoder = Decoder(self.depth, self.heads, self.dim // self.heads, self.hidden, dtype=dtype,
                               remat=self.remat)  # fmt: skip
        if self.goal:
            self.kind_of_goal = self.param("kind_of_goal", nn.initializers.normal(0.02), (self.dim,))
        if self.head is None:
            self.to_actions = Linear(self.future * self.action_dim)
        else:
            self.act = self.head.clone(action_dim=self.action_dim, chunk_length=self.future, binary=(),
                                       dtype=self.dtype)  # fmt: skip

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit together, with what to change."""
        if self.dim % (2 * self.heads):
            raise UserError(f"dim {self.dim} is not a multiple of twice the heads, {self.heads}; rotary positions turn "
                            "pairs of features")
        if not (self.state_dim or self.cameras):
            raise UserError("there is nothing to observe: give data.fields with 'state', 'image' or both")
        if self.future > 1 and not self.supervise_all_steps:
            raise UserError(f"future is {self.future} and supervise_all_steps False: chunks of actions are learned at "
                            "every step; set supervise_all_steps=True or future=1")
        if self.prompt_loss and not self.causal:
            raise UserError("prompt_loss with causal=False: the steps of the prompt see their own actions, there is "
                            "nothing to learn; leave one of them out")
        if self.prompt_loss and not self.prompts:
            raise UserError("prompt_loss needs prompts; prompts is 0")
        self._check_images()
        self._check_head()
        self._check_tokenizer()

    @nn.nowrap
    def _check_images(self) -> None:
        if self.cameras and self.image_size % self.patch:
            raise UserError(f"patch {self.patch} does not divide image_size {self.image_size}; change one of them")
        if self.cameras and self.vit_dim % self.vit_heads:
            raise UserError(f"vit_dim {self.vit_dim} is not a multiple of vit_heads {self.vit_heads}")

    @nn.nowrap
    def _check_head(self) -> None:
        if self.head is None:
            return
        filled = self.head.clone(action_dim=self.action_dim, chunk_length=self.future, binary=())
        if self.head.latent or self.head.iterative or filled.queries != 1:
            raise UserError(f"model.head is a {type(self.head).__module__}; a step's actions are read off one state, "
                            "which 'policies.heads.bins' and 'policies.heads.dct' can do")  # fmt: skip

    @nn.nowrap
    def _check_tokenizer(self) -> None:
        if (self.actions == "raw") != (self.tokenizer is None):
            state = "None" if self.tokenizer is None else "set"
            raise UserError(f"actions is '{self.actions}' and tokenizer is {state}; codes need a tokenizer "
                            "(init_from.tokenizer=RUN of tokenizers.mstcn), raw actions none")
        if self.tokenizer is None:
            if self.train_tokenizer or self.fifa_temperature is not None:
                raise UserError("train_tokenizer and fifa_temperature need a tokenizer; set actions to 'z', 'q' or "
                                "'z+q' and give one")
            return
        if not getattr(self.tokenizer, "two_level", False):
            raise UserError(f"tokenizer is a {type(self.tokenizer).__module__}; tokenizers.mstcn is expected")
        if not self.tokenizer.causal:
            raise UserError("tokenizer.causal is False: the token of a step would depend on the actions after it, "
                            "which the policy must predict; train the tokenizer with model.causal=True")
        if self.tokenizer.action_dim != self.action_dim or self.tokenizer.state_dim:
            raise UserError(f"the tokenizer reads {self.tokenizer.action_dim} numbers of an action and "
                            f"{self.tokenizer.state_dim} of a state; {self.action_dim} and 0 are expected")
        if self.fifa_temperature is not None and not (self.fifa_temperature > 0 and "q" in LEVELS[self.actions]):
            raise UserError(f"fifa_temperature is {self.fifa_temperature} with actions '{self.actions}'; give a "
                            "positive number, and actions 'q' or 'z+q'")

    @property
    def without_gradient(self) -> tuple[str, ...]:
        return () if self.tokenizer is None or self.train_tokenizer else ("tokenizer/.*",)

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes."""
        return icl_data.example(self, batch_size)

    def __call__(self, batch, *, train: bool) -> Output:
        """Losses and metrics of a batch; with `train` states are noisy and some prompts missing."""
        batch = self._disturbed(batch) if train else batch
        vectors, named, metrics = self._vectors(batch, train=train)
        supervised = icl_data.supervised(self, batch, self._states(batch, vectors))
        return Output(losses={**self._losses(*supervised), **named}, metrics=metrics)

    def predict(self, batch) -> dict[str, jax.Array]:
        """ "action" f32 [B, T, F, A], normalised: what the policy would do at each step of the window, given the
        recorded steps before it."""
        vectors, _, _ = self._vectors(batch, train=False)
        return {"action": self._act(self._states(batch, vectors)[:, -self.context :])}

    def evaluate(self, batch) -> dict[str, jax.Array]:
        """Per example "action" f32 [B, T, A], "action_mask", "task_id", and what is predicted for it: "prediction" with
        the example's prompt, "prediction_none" without one, "prediction_wrong" with that of another task in the batch,
        which "has_wrong" f32 [B] says there is. Without prompts "prediction" alone."""
        arrays = {name: batch[name] for name in ("action", "action_mask", "task_id", "episode_id", "step")}
        arrays["prediction"] = self.predict(batch)["action"][:, :, 0]
        if self.prompts:
            wrong, has_wrong = icl_data.of_another_task(batch)
            arrays |= {"prediction_none": self.predict(icl_data.without_prompt(batch))["action"][:, :, 0],
                       "prediction_wrong": self.predict(wrong)["action"][:, :, 0], "has_wrong": has_wrong}  # fmt: skip
        return arrays

    @nn.nowrap
    def summarize(self, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """Scalars from the arrays of `evaluate` over a data set; see `summarize`."""
        return summarize(arrays)

    def start(self, batch) -> tuple[Cache, jax.Array]:
        """Prefills the cache with the goals and prompts of a batch.

        Args:
          batch: of which what begins with "goal_" and "prompt_" counts, and "action" for the number of rows.

        Returns:
          The cache that `extend` goes on with, and which of its slots hold tokens, bool [B, prefix + 2 T].
        """
        rows = len(batch["action"])
        slots = self._prefix + 2 * self.context
        cache, valid = self.decoder.new_cache(rows, slots), jnp.zeros((rows, slots), bool)
        if not self._prefix:
            return cache, valid
        vectors = None
        if self.prompts:
            action, mask = batch["prompt_action"], batch["prompt_action_mask"]
            vectors = self._flat(self._tokenized(*(_merged(x, 2) for x in (action, mask))), rows)
        x, seen = _joined(self._before(batch, vectors))
        mask = jnp.pad(self._sees(seen), ((0, 0), (0, 0), (0, slots - self._prefix)))
        _, cache = self.decoder(x, positions=_positions(x, 0), mask=mask, cache=cache)
        return cache, valid.at[:, : self._prefix].set(seen)

    def extend(self, cache: Cache, valid: jax.Array, observation, action: jax.Array, first, *, begin: bool):
        """Steps of the window behind those in the cache.

        Args:
          cache, valid: of `start` or `extend`.
          observation: of N steps in a row, {"state" f32 [B, N, S], "image" [B, N, (V,) H, W, 3]}, normalised.
          action: f32 [B, T, A], the actions of the window up to the last of the steps, normalised; entries
            of that step and later ones are ignored.
          first: i32, position of the first of these steps in the window.
          begin: the window begins with them; else the action before them enters the cache as well.

        Returns:
          What to do at the last of the steps, f32 [B, F, A], the new cache and the new `valid`.
        """
        states = self.observe(observation) + self.kinds[1, 0]
        count = states.shape[1]
        is_past = jnp.broadcast_to(jnp.arange(self.context) < first + count - 1, action.shape[:2]).astype(jnp.float32)
        action = action * is_past[..., None]
        actions = self.embed_action(action, self._tokenized(action, is_past)) + self.kinds[1, 1]
        # Before each state stands the action of the step before it: shifted by one, and of step -1, which there is not,
        # zeros.
        before = jax.lax.dynamic_slice_in_dim(jnp.pad(actions, ((0, 0), (1, 0), (0, 0))), first, count, 1)
        x = interleave(before, states)[:, 1 if begin else 0 :]
        at = self._prefix + 2 * first - (0 if begin else 1)
        positions = _positions(x, at)
        slots = jnp.arange(valid.shape[1])
        valid = valid | ((slots >= at) & (slots < at + x.shape[1]))
        # Slots of padded prompt steps stay invalid for good: later tokens must not see them either.
        mask = valid[:, None] & (slots <= positions[..., None])
        hidden, cache = self.decoder(x, positions=positions, mask=mask, cache=cache, at=at)
        return self._act(hidden[:, -1:])[:, 0], cache, valid

    @property
    def _prefix(self) -> int:
        """Tokens of goal and prompts."""
        return int(self.goal) + 2 * self.prompts * self.prompt_length

    def _disturbed(self, batch) -> dict:
        """The batch as training sees it: noise on the states, no prompt for some rows."""
        batch = dict(batch)
        for name in ("state", "prompt_state", "goal_state"):
            if self.state_noise and name in batch:
                noise = jax.random.normal(self.make_rng("noise"), batch[name].shape)
                batch[name] = batch[name] + self.state_noise * noise
        if self.prompts and self.prompt_dropout:
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.prompt_dropout, (len(batch["action"]),))
            batch = icl_data.without_prompt(batch, keep)
        return batch

    def _vectors(self, batch, *, train: bool) -> tuple[tuple, dict, dict]:
        """(code vectors of the prompts' actions [B, P L, E], of the window's [B, T, E]) by level, losses, metrics."""
        if self.tokenizer is None:
            return (None, None), {}, {}
        rows, length = len(batch["action"]), max(self.context, self.prompt_length if self.prompts else 0)
        parts = [(batch["action"][:, None], batch["action_mask"][:, None])]
        if self.prompts:
            parts.insert(0, (batch["prompt_action"], batch["prompt_action_mask"]))
        # prompts and windows in one pass: a batch moves the codebooks once
        action, mask = (jnp.concatenate([_padded(part[i], length) for part in parts], 1) for i in (0, 1))
        vectors, named, metrics = self._pass(_merged(action, 2), _merged(mask, 2), train=train)
        vectors = {name: x.reshape(rows, -1, length, x.shape[-1]) for name, x in vectors.items()}
        window = {name: x[:, -1, : self.context] for name, x in vectors.items()}
        prompt = {name: _merged(x[:, :-1, : self.prompt_length], 2, 1) for name, x in vectors.items()}
        return (prompt, window), {name: x.reshape(rows, -1).mean(1) for name, x in named.items()}, metrics

    def _pass(self, action: jax.Array, mask: jax.Array, *, train: bool) -> tuple[dict, dict, dict]:
        """The tokenizer on sequences [N, W, A]: code vectors by level [N, W, E], its losses [N] and metrics."""
        sequences = {"action": action, "action_mask": mask}
        # Its variables are made by a training pass alone; the lines below only read them.
        if self.is_initializing():
            self.tokenizer(sequences, train=True)
        # before the codebooks move: by what they become, the code of a step would know the actions after it
        vectors = self._tokenized(action, mask, soft=not train)
        if not (train and self.train_tokenizer):
            return vectors, {}, {}
        out = self.tokenizer(sequences, train=True)
        return vectors, *({f"tokenizer_{name}": x for name, x in part.items()} for part in (out.losses, out.metrics))

    def _tokenized(self, action: jax.Array, mask: jax.Array, soft: bool = True) -> dict[str, jax.Array] | None:
        """Code vectors by level f32 [N, W, E] of sequences [N, W, A], FIFA's where `soft`; None for raw actions."""
        if self.tokenizer is None:
            return None
        vectors = self.tokenizer.vectors(self.tokenizer.encode({"action": action, "action_mask": mask})["codes"])
        if soft and self.fifa_temperature is not None:
            vectors["q"] = self.tokenizer.soft_clusters(action, mask, self.fifa_temperature)
        # The policy must not bend the codes to its own loss, see `train_tokenizer`.
        return jax.lax.stop_gradient(vectors)

    @nn.nowrap
    def _flat(self, vectors: dict | None, rows: int) -> dict | None:
        """Vectors of prompts [B P, L, E] -> [B, P L, E]."""
        return vectors and {name: x.reshape(rows, -1, x.shape[-1]) for name, x in vectors.items()}

    def _states(self, batch, vectors: tuple) -> jax.Array:
        """What the actions of all steps are read off, [B, P L + T, D], prompts first."""
        x, seen = _joined([*self._before(batch, vectors[0]), self._tokens(batch, vectors[1], segment=1)])
        # Behind the goal every other token is a state, and a step's action is read at its state.
        return self.decoder(x, positions=_positions(x, 0), mask=self._sees(seen))[:, int(self.goal) :: 2]

    def _before(self, batch, vectors: dict | None) -> list[tuple[jax.Array, jax.Array]]:
        """What stands before the window, as `_tokens` gives it: the goal, one token, and the prompts."""
        parts = []
        if self.goal:
            goal = icl_data.goal_of(batch)
            parts.append((self.observe(goal) + self.kind_of_goal, goal["step_mask"] > 0))
        if self.prompts:
            parts.append(self._tokens(icl_data.prompt_of(batch), vectors, segment=0))
        return parts

    def _tokens(self, part, vectors: dict | None, *, segment: int) -> tuple[jax.Array, jax.Array]:
        """Tokens [B, 2N, D] of N steps, and which of them there are, bool [B, 2N]. `segment`: 0 prompts, 1 window."""
        states = self.observe(part) + self.kinds[segment, 0]
        actions = self.embed_action(part["action"], vectors) + self.kinds[segment, 1]
        return interleave(states, actions), interleave(part["step_mask"], part["action_mask"]) > 0

    def _act(self, states: jax.Array) -> jax.Array:
        """[B, N, D] -> actions f32 [B, N, F, A]."""
        if self.head is None:
            actions = self.to_actions(states.astype(jnp.float32))
        else:
            actions = self.act.sample(_merged(states, 2)[:, None], None, None)
        return actions.reshape(*states.shape[:2], self.future, self.action_dim)

    def _losses(self, states: jax.Array, target: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
        """Of states [B, N, D] with targets f32 [B, N, F, A] and weights f32 [B, N, F]; see the class."""
        if self.head is None:
            return action_losses(self._act(states), target, weight)
        each = jnp.broadcast_to(weight[..., None], target.shape)
        steps = (_merged(x, 2) for x in (target, each))
        error = self.act.loss(_merged(states, 2)[:, None], None, *steps, None)
        return {"action": _mean(error.reshape(target.shape).mean(-1), weight)}

    def _sees(self, seen: jax.Array) -> jax.Array:
        """Which tokens each token sees, bool [B, N, N], of those that there are, bool [B, N]; itself always."""
        position = jnp.arange(seen.shape[1])
        visible = position <= position[:, None]
        if not self.causal:
            visible = visible | ((position < self._prefix) & (position[:, None] < self._prefix))
        # Every token sees itself, or the softmax of a masked one would be over nothing and give NaN.
        return (visible & seen[:, None]) | (position == position[:, None])


def _positions(x: jax.Array, at) -> jax.Array:
    """i32 [B, N]: positions `at`, `at` + 1, ... of the tokens [B, N, D]."""
    return jnp.broadcast_to(at + jnp.arange(x.shape[1]), x.shape[:2])


def _joined(parts: list[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
    """Tokens [B, N, D] and which there are, bool [B, N], of several parts in a row."""
    tokens, seen = zip(*parts)
    return jnp.concatenate(tokens, 1), jnp.concatenate(seen, 1)


def _merged(x: jax.Array, axes: int, first: int = 0) -> jax.Array:
    """`axes` axes from `first` on as one."""
    return x.reshape(*x.shape[:first], -1, *x.shape[first + axes :])


def _padded(x: jax.Array, length: int) -> jax.Array:
    """[B, P, N, ...] -> [B, P, length, ...], zeros behind."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), *((0, 0),) * (x.ndim - 3)))
