"""Policies with instructions: an image and an instruction to latent actions (stage 2) or actions (stage 3)."""

import copy
import functools

import jax
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import text
from lapa_jax.inference.base import ColumnModel, TrainedModel, finite
from lapa_jax.inference.observations import model_images


class Instructed:
    """Part of a `TrainedModel` whose model takes "image", "text" and "text_mask"."""

    @functools.cached_property
    def tokenizer(self) -> text.Tokenizer:
        """The tokenizer of the run's instructions, which lies where it lay in training."""
        spec = self.config.get("data", {}).get("text_tokenizer")
        if spec is None:
            raise UserError("this model's config names no data.text_tokenizer; load the run that trained it")
        return text.build(spec)

    def observed(
        self, image, instruction, dataset: str | None = None, resized: bool = False
    ) -> tuple[dict[str, np.ndarray], bool]:  # fmt: skip
        """A batch as in training, and whether a single image was given.

        Args:
          image: uint8 [B, (V,) H, W, 3] or a single one without B. instruction: B texts, or one for all.
          dataset: as whose images they are resized; needed where the datasets were resized in different ways.
          resized: they are what `observations.resized` gave, and taken as they are.

        Raises:
          UserError: another shape or type, or an instruction that is longer than those of training could be.
        """
        image, model = np.asarray(image), self.model
        single = image.ndim == 3 + (model.cameras > 1)
        batch = image[None] if single else image
        texts = [instruction] * len(batch) if isinstance(instruction, str) else list(instruction)
        if len(texts) != len(batch) or (single and not isinstance(instruction, str)):
            raise UserError(f"{len(batch)} images and {len(texts)} instructions; give one text, or one for each of a "
                            "batch of images")  # fmt: skip
        how = () if resized else (self, dataset)
        batch = model_images(batch, "image", batch.shape[:1], model.cameras, model.image_size, *how)
        ids, mask = self.tokenizer(texts, model.text_length)
        return {"image": batch, "text": ids, "text_mask": mask.astype(np.float32)}, single

    def with_history(self, instruction, history) -> dict[str, np.ndarray]:
        """"text" and "text_mask" of prompts that hold the codes of the step before.

        Args:
          instruction: B texts, or one for all. history: int [B, N].

        Raises:
          UserError: what are no codes of this policy, one that sees none, or a tokenizer that knows no codes.
        """
        texts, rows = [instruction] * len(history) if isinstance(instruction, str) else list(instruction), []
        if len(texts) != len(history):
            raise UserError(f"{len(texts)} instructions and codes of {len(history)} steps before; give one for each")
        for words, codes in zip(texts, np.asarray(history)):
            tokenizer = copy.copy(self.tokenizer)
            tokenizer.template, needed = self.model.history_template(codes)
            rows.append(tokenizer([words], self.model.text_length))
            if needed != [number for number in rows[-1][0][0].tolist() if number in needed]:
                raise UserError(f"the tokenizer {tokenizer!r} makes no ids {needed} of the codes {list(codes)}; give "
                                "the run the one that was trained with the model")  # fmt: skip
        ids, mask = (np.concatenate(parts) for parts in zip(*rows))
        return {"text": ids, "text_mask": mask.astype(np.float32)}

    def seen(self, image, *, dataset: str | None = None) -> np.ndarray:
        """What is left of images for the model, such as those that the codes of LAPA-7B's image tokenizer stand for.

        Args:
          image, dataset: as of `observed`.

        Returns:
          f32 [B, (V,) side, side, 3] in [0, 1], without B for a single image.
        """
        image, model = np.asarray(image), self.model
        single = image.ndim == 3 + (model.cameras > 1)
        batch = image[None] if single else image
        batch = model_images(batch, "image", batch.shape[:1], model.cameras, model.image_size, self, dataset)
        shown = self.run(self._seen, batch)
        return shown[0] if single else shown

    @functools.cached_property
    def _seen(self):
        return jax.jit(lambda variables, images: self.model.apply(variables, images, method="seen"))


class LatentPolicy(Instructed, TrainedModel):
    """A trained vision-language model that predicts latent actions. Attributes as of `TrainedModel`."""

    def __init__(self, model, variables, **about):
        super().__init__(model, variables, **about)
        self._logits = jax.jit(lambda variables, batch: model.apply(variables, batch, method="predict")["logits"])

    @property
    def labels(self) -> dict | None:
        """What the codes are: the "labels" entry of the data it was trained on, with the tokenizer's fingerprint."""
        labels = [about.get("labels") for about in self.datasets.values()]
        return labels[0] if labels else None

    def predict(
        self, image, instruction, *, dataset: str | None = None, official_sampler: bool = False, history=None
    ) -> np.ndarray:  # fmt: skip
        """The most likely codes.

        Args:
          image: uint8 [B, (V,) H, W, 3] or a single one without B; any H and W, resized as in training.
          instruction: B texts, or one for all.
          dataset: of a policy trained on several: as whose images they are resized.
          history: int [B, N], or [N] for a single image: the codes of the step before, which UniVLA may be told; None
            for none.
          official_sampler: what LAPA's released sampler makes of the codes, for comparison: all behind a 2 are 0.

        Returns:
          int32 [B, N], or [N] for a single image.

        Raises:
          UserError: another shape or type, or an instruction that is longer than those of training could be.
        """
        codes = self.logits(image, instruction, dataset=dataset, history=history).argmax(-1).astype(np.int32)
        if not official_sampler:
            return codes
        # here and not above: an exported program runs without Flax and the code of models
        from lapa_jax.models.policies import lapa

        return lapa.official_sampler(codes)

    def logits(self, image, instruction, *, dataset: str | None = None, history=None) -> np.ndarray:
        """f32 [B, N, K] or [N, K], arguments as of `predict`; of a model that gives codes one after the other those
        of each position are conditioned on the most likely codes before it."""
        batch, single = self.observed(image, instruction, dataset)
        if history is not None:
            batch |= self.with_history(instruction, np.asarray(history)[None] if single else history)
        logits = self.run(self._logits, batch)
        return logits[0] if single else logits


class DeltaPolicy(Instructed, ColumnModel):
    """A trained vision-language model that predicts the deltas of latent actions. Attributes as of `ColumnModel`."""

    COLUMNS = ("delta",)
    labels = LatentPolicy.labels

    def __init__(self, model, variables, **about):
        super().__init__(model, variables, **about)
        self._predict = jax.jit(lambda variables, batch: model.apply(variables, batch, method="predict")["delta"])

    def predict(self, image, instruction, *, dataset: str | None = None) -> np.ndarray:
        """The deltas, as the tokenizer that made the labels gives them and its `decode` takes them.

        Args:
          image: uint8 [B, (V,) H, W, 3] or a single one without B; any H and W, resized as in training.
          instruction: B texts, or one for all.
          dataset: of a policy trained on several: as whose images they are resized, and whose scaling deltas have.

        Returns:
          f32 [B, N, Q], or [N, Q] for a single image.

        Raises:
          UserError: another shape or type, or an instruction that is longer than those of training could be.
        """
        dataset = self.dataset(dataset)
        batch, single = self.observed(image, instruction, dataset)
        rows, normalizer = self.run(self._predict, batch), self.normalizer(dataset, "delta")
        if normalizer is not None:
            rows = normalizer.unnormalize(rows.reshape(len(rows), -1)).reshape(rows.shape)
        return rows[0] if single else rows


class Policy(Instructed, ColumnModel):
    """A trained vision-language-action model. Attributes as of `ColumnModel`."""

    COLUMNS = ("action",)

    def __init__(self, model, variables, **about):
        super().__init__(model, variables, **about)
        self._predict = jax.jit(lambda variables, batch: model.apply(variables, batch, method="predict")["action"])

    def act(self, image, instruction: str, state=None, *, dataset: str | None = None) -> np.ndarray:
        """What to do now: the first action of `chunk`, f32 [A]. Arguments as of `chunk`, of a single image."""
        chunk = self.chunk(image, instruction, state, dataset=dataset)
        if chunk.ndim == 3:
            raise UserError("act takes one observation; call chunk for a batch of them")
        return chunk[0]

    def chunk(self, image, instruction, state=None, *, dataset: str | None = None) -> np.ndarray:
        """The next T actions.

        Args:
          image: uint8 [B, (V,) H, W, 3] or a single one without B; any H and W, resized as in training.
          instruction: B texts, or one for all.
          state: f32 [B, S] or [S], in the units of the data; what the policy was not trained with is left out.
          dataset: of a policy trained on several: whose units all numbers are in.

        Returns:
          f32 [B, T, A] or [T, A], in the units of the data.

        Raises:
          UserError: another shape or type, numbers that are not finite, an instruction that is too long.
        """
        batch, single = self.prepare(image, instruction, state, dataset=dataset)
        chunks = self.to_units(self.predict(batch), self.dataset(dataset))
        return chunks[0] if single else chunks

    def session(self, history: bool = False):
        """What `chunk` is asked of during an episode, or episodes in lockstep.

        Args:
          history: remember what was said at the query before, which only a `CodedPolicy` does.
        """
        if history:
            raise UserError(f"a {self.config.model.name} sees no codes of the query before; leave --history out")
        return self

    def prepare(
        self, image, instruction, state=None, *, dataset: str | None = None, resized: bool = False
    ) -> tuple[dict, bool]:  # fmt: skip
        """A batch for `predict`, and whether a single image was given. Arguments and errors as of `chunk` and
        `observed`."""
        dataset = self.dataset(dataset)
        batch, single = self.observed(image, instruction, dataset, resized)
        if self.model.state_dim:
            batch["state"] = self._state(state, len(batch["image"]), single, dataset)
        return batch, single

    def predict(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """f32 [B, T, width], normalised, for a batch of `prepare`, or rows of several; `to_units` gives actions."""
        return self.run(self._predict, batch)

    def _state(self, state, rows: int, single: bool, dataset: str | None) -> np.ndarray:
        if state is None:
            raise UserError("this policy was trained with proprioception; give the state")
        state = np.asarray(state)
        state = state[None] if single else state
        state = finite(self.check_rows(state, "state", (2,), self.width_of(dataset, "state")), "state")
        if len(state) != rows:
            raise UserError(f"{rows} images and {len(state)} states; give one for each")
        return self.to_model(state, dataset, "state")


class TokenPolicy(Policy):
    """A policy whose actions are tokens, decoded here in float64: OpenVLA, LAPA-7B. Attributes as of `Policy`.

    Its numbers are f64 where those of `Policy` are f32; they equal the official code's.
    """

    def __init__(self, model, variables, **about):
        super().__init__(model, variables, **about)
        self._predict = jax.jit(lambda variables, batch: model.apply(variables, batch, method="predict")["tokens"])

    def predict(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """f64 [B, 1, width], normalised, for a batch of `prepare`, or rows of several; `to_units` gives actions."""
        return self.model.actions_of(super().predict(batch))


class CodedPolicy(Policy):
    """A policy that says a latent action before it acts, and may be told that of the step before: UniVLA with an action
    decoder. Attributes as of `Policy`."""

    def __init__(self, model, variables, **about):
        super().__init__(model, variables, **about)

        def predict(variables, batch):
            predicted = model.apply(variables, batch, method="predict")
            return {name: predicted[name] for name in ("action", "codes")}

        self._predict = jax.jit(predict)

    def predict(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """As `Policy.predict`."""
        return self.run(self._predict, batch)["action"]

    def chunk_and_codes(
        self, image, instruction, state=None, *, dataset: str | None = None, history=None
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """The next T actions, and the codes that they were decoded from.

        Args:
          image, instruction, state, dataset: as of `chunk`.
          history: int [B, N], or [N] for a single image: the codes of the step before; None for none.

        Returns:
          f32 [B, T, A] in the units of the data, and int32 [B, N]; without B for a single image.
        """
        batch, single = self.prepare(image, instruction, state, dataset=dataset)
        if history is not None:
            batch |= self.with_history(instruction, np.asarray(history)[None] if single else history)
        predicted = self.run(self._predict, batch)
        chunks, codes = self.to_units(predicted["action"], self.dataset(dataset)), predicted["codes"]
        return (chunks[0], codes[0]) if single else (chunks, codes)

    def session(self, history: bool = False):
        """As `Policy.session`."""
        return Remembering(self) if history else self


class Remembering:
    """Tells a `CodedPolicy` at each query the codes that it said at the query before, as UniVLA's authors run models
    that were finetuned so. For one episode, or several in lockstep."""

    def __init__(self, policy: CodedPolicy):
        self._policy, self._codes = policy, None

    def chunk(self, image, instruction, state=None, *, dataset: str | None = None) -> np.ndarray:
        """As `Policy.chunk`."""
        chunk, self._codes = self._policy.chunk_and_codes(image, instruction, state, dataset=dataset,
                                                          history=self._codes)  # fmt: skip
        return chunk
