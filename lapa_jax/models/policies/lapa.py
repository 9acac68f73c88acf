"""LAPA-7B as it was released (Ye et al. 2024, arXiv:2410.11758): a Large World Model (Liu et al. 2024) that predicts
the latent action of an image and an instruction.

Images are codes of a VQGAN. The sequence is [prompt][image codes][end of image][`</vision> <delta>`][latent codes], and
text, image codes and latent codes have an embedding and a head each. Which one speaks is known at every place, so the
latent head only chooses among the latent codes. `tools/import_weights.py lapa7b` makes such a model of the released
files; what becomes of it with robot actions is `lapa_action`.
"""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import FILLED, Count, FromData, Range
from lapa_jax.core.output import Output
from lapa_jax.models import base
from lapa_jax.models.policies import vision_language, vla
from lapa_jax.models.policies.openvla import TokenHead
from lapa_jax.nn import lora
from lapa_jax.nn.attention import Cache
from lapa_jax.nn.linear import Linear

LATENT_PROMPT = (1533, 4924, 29958, 529, 4181, 29958)
"""`</vision> <delta>` in the tokenizer of Llama 1 and 2."""


class Sequence(NamedTuple):
    """Tokens before the first one that is predicted, all [B, S].

    Attributes: ids: i32, of text or image codes. vision: bool, which are image codes. real: bool, False for padding.
    """

    ids: jax.Array
    vision: jax.Array
    real: jax.Array


def from_data(spec: dict, source, seed: int) -> dict:
    """Fills in what is None and only the data tell: `text_length`, and of the latents `code_length` and
    `codebook_size`."""
    return {**body_from_data(spec, source), **vision_language.latent_from_data(spec, source)}


def body_from_data(spec: Mapping, source) -> dict:
    """The same without the latents.

    Raises:
      UserError: no images or tokens, several cameras, or a tokenizer with more tokens than the model knows.
    """
    filled = vision_language.body_from_data({**spec, "cameras": None}, source)
    if filled["cameras"] != 1:
        raise UserError(f"{spec['name']} sees one camera, the data have {filled['cameras']}; name one as data.camera")
    del filled["cameras"]
    return filled


class Lapa(nn.Module):
    """The body, with the latent head; what is chosen and learned is the models' own matter.

    Attributes:
      llm: `llama` with head "own", the text's.
      vqgan: `vision.vqgan`. No gradient reaches it.
      image_size: side of the images, a multiple of the VQGAN's cell.
      text_length: L, tokens that prompts are padded to.
      vision_vocab: image codes, and those of the ends of images behind them. vision_end: that of the last image.
      code_length: N, codes of a latent action. codebook_size: K.
      latent_prompt: the ids between the image and the latent codes.
      lora_rank, lora_alpha, lora_modules: as of `VisionLanguageModel`.
    """

    llm: nn.Module | None = None
    vqgan: nn.Module | None = None
    image_size: FromData = 256
    text_length: FromData = 128
    vision_vocab: Count = 8448
    vision_end: Count = 8193
    code_length: FromData = 4
    codebook_size: Annotated[int | None, Range(2), FILLED] = 8
    latent_prompt: tuple[int, ...] = LATENT_PROMPT
    lora_rank: Annotated[int, Range(0)] = 0
    lora_alpha: float = 16.0
    lora_modules: str = "llm/decoder/layers/.*"

    cameras = 1

    def setup(self):
        new, dim, dtype = nn.initializers.normal(0.02), self.llm.dim, jnp.dtype(self.llm.dtype)
        self.vision_embedding = self.param("vision_embedding", new, (self.vision_vocab, dim))
        self.latent_embedding = self.param("latent_embedding", new, (self.codebook_size, dim))
        self.to_vision = Linear(self.vision_vocab, use_bias=False, dtype=dtype)
        self.to_latent = TokenHead(self.codebook_size, use_bias=False, dtype=dtype)

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that cannot work, with what to change."""
        if self.llm is None or self.vqgan is None:
            raise UserError("the model needs llm, a llama, and vqgan, a vision.vqgan")
        if self.llm.head != "own":
            raise UserError(f"llm.head is '{self.llm.head}'; the released model has a matrix of its own: set 'own'")
        if self.image_size % self.vqgan.cell:
            raise UserError(f"image_size {self.image_size} is no multiple of {self.vqgan.cell}, the pixels of one code "
                            "of the VQGAN")
        if not self.vqgan.codebook_size <= self.vision_end < self.vision_vocab:
            raise UserError(f"vision_end is {self.vision_end}; it lies behind the VQGAN's {self.vqgan.codebook_size} "
                            f"codes and within the {self.vision_vocab} of vision_vocab")
        self.check_ids("latent_prompt")

    @nn.nowrap
    def check_ids(self, name: str) -> None:
        """Raises UserError where a field holds ids that are none of the text's."""
        ids = getattr(self, name)
        if not ids or not all(isinstance(i, int) and 0 <= i < self.llm.vocab for i in ids):
            raise UserError(f"{name} is {ids}; ids of the text's vocabulary of {self.llm.vocab} are needed")

    @property
    def image_tokens(self) -> int:
        """How many codes an image is."""
        return (self.image_size // self.vqgan.cell) ** 2

    @nn.nowrap
    def observation(self, batch_size: int) -> dict[str, np.ndarray]:
        """What the model sees, as zeros with all masks 1."""
        return {
            "image": np.zeros((batch_size, self.image_size, self.image_size, 3), np.uint8),
            "text": np.zeros((batch_size, self.text_length), np.int32),
            "text_mask": np.ones((batch_size, self.text_length), np.float32),
        }

    def adapters(self):
        """Puts the low-rank adapters, if any, on what is computed within."""
        return lora.adapters(self.lora_rank, self.lora_alpha, self.lora_modules)

    def image_codes(self, images: jax.Array) -> jax.Array:
        """Images uint8 [B, H, W, 3] -> their codes i32 [B, rows, columns]."""
        return jax.lax.stop_gradient(self.vqgan.encode(images))

    def seen(self, images: jax.Array) -> jax.Array:
        """Images uint8 [B, H, W, 3] as their codes show them, f32 in [0, 1]: what is left of them for the model."""
        return (self.vqgan.decode(self.image_codes(images)) + 1) / 2

    def sequence(self, batch: Mapping[str, jax.Array], prompt: tuple[int, ...]) -> Sequence:
        """What comes before the first predicted token. prompt: the ids behind the image."""
        codes = self.image_codes(batch["image"]).reshape(batch["image"].shape[0], -1)
        rows, count = codes.shape
        behind = jnp.broadcast_to(jnp.array([self.vision_end, *prompt], jnp.int32), (rows, 1 + len(prompt)))
        length = self.text_length + count + 1 + len(prompt)
        place = jnp.arange(length)
        vision = (place >= self.text_length) & (place <= self.text_length + count)
        real = jnp.concatenate([batch["text_mask"] > 0, jnp.ones((rows, length - self.text_length), bool)], axis=1)
        ids = jnp.concatenate([batch["text"], codes, behind], axis=1)
        return Sequence(ids, jnp.broadcast_to(vision, ids.shape), real)

    def embed_prefix(self, sequence: Sequence) -> jax.Array:
        """[B, S, dim]: each token by the embedding of its kind."""
        ids, vision, _ = sequence
        words = self.llm.embed(jnp.where(vision, 0, ids))
        codes = self.vision_embedding[jnp.where(vision, ids, 0)].astype(words.dtype)
        return jnp.where(vision[..., None], codes, words)

    def hidden(self, sequence: Sequence, further: jax.Array) -> jax.Array:
        """States [B, 1 + M, dim] of the sequence's last token and of the embeddings [B, M, dim] behind it."""
        x = jnp.concatenate([self.embed_prefix(sequence), further], axis=1)
        mask, positions = _attend(sequence.real, further.shape[1])
        return self.llm(embeddings=x, mask=mask, positions=positions)[:, sequence.ids.shape[1] - 1 :]

    def prefill(self, sequence: Sequence, room: int) -> tuple[jax.Array, Cache]:
        """The state [B, 1, dim] of the sequence's last token, and a cache with room for `room` more."""
        x = self.embed_prefix(sequence)
        mask, positions = _attend(sequence.real, 0)
        cache = self.llm.new_cache(x.shape[0], x.shape[1] + room)
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, room)))
        out, cache = self.llm(embeddings=x, mask=mask, positions=positions, cache=cache)
        return out[:, -1:], cache

    def decode_step(self, sequence: Sequence, x: jax.Array, number, cache: Cache) -> tuple[jax.Array, Cache]:
        """The state of the embedding [B, 1, dim] of predicted token `number`, 0, 1, ..., which sees all before it."""
        length, slots = sequence.real.shape[1], cache.key.shape[2]
        seen = jnp.concatenate([sequence.real, jnp.ones((x.shape[0], slots - length), bool)], axis=1)
        mask = (seen & (jnp.arange(slots) <= length + number))[:, None]
        position = jnp.sum(sequence.real, axis=1, keepdims=True) + number
        return self.llm(embeddings=x, mask=mask, positions=position, cache=cache, at=length + number)

    def generate(self, sequence: Sequence, count: int, apply_head, embed) -> tuple[jax.Array, jax.Array]:
        """Greedy tokens i32 [B, count] and the logits f32 [B, count, K] that they are the largest of.

        Args:
          sequence: what comes before. count: how many.
          apply_head: (model, states [B, 1, dim], number) -> logits f32 [B, 1, K]. embed: (model, tokens i32 [B, 1]) ->
            [B, 1, dim].
        """
        state, cache = self.prefill(sequence, count - 1)
        first = apply_head(self, state, 0)

        def step(module, carry, number):
            token, cache = carry
            state, cache = module.decode_step(sequence, embed(module, token), number, cache)
            logits = apply_head(module, state, number + 1)
            return (jnp.argmax(logits, -1), cache), logits

        # one loop in the compiled program: nothing comes back to the host between tokens
        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        _, further = scan(self, (jnp.argmax(first, -1), cache), jnp.arange(count - 1))
        logits = jnp.concatenate([first, jnp.moveaxis(further[:, :, 0], 0, 1)], axis=1)
        return jnp.argmax(logits, -1).astype(jnp.int32), logits

    def latent_codes(self, sequence: Sequence) -> tuple[jax.Array, jax.Array]:
        """The greedy latent codes i32 [B, N] behind a sequence, and their logits f32 [B, N, K]."""
        return self.generate(sequence, self.code_length, _latent_logits, _embed_latent)

    def teacher_forced_logits(self, sequence: Sequence, codes: jax.Array) -> jax.Array:
        """f32 [B, N, K]: logits of latent codes i32 [B, N], given the true ones before."""
        return self.to_latent(self.hidden(sequence, _embed_latent(self, codes[:, :-1]))).astype(jnp.float32)

    def make_other_parameters(self, sequence: Sequence) -> None:
        """Calls what the loss does not need: the other heads, and the decoder of images."""
        self.every_head(sequence)
        side = self.image_size // self.vqgan.cell
        self.vqgan.decode(jnp.zeros((1, side, side), jnp.int32))

    def every_head(self, sequence: Sequence) -> dict[str, jax.Array]:
        """The logits f32 [B, S, ...] of "text", "vision" and "latent" at every place of a sequence."""
        mask, positions = _attend(sequence.real, 0)
        states = self.llm(embeddings=self.embed_prefix(sequence), mask=mask, positions=positions)
        return {"text": self.llm.logits(states), "vision": self.to_vision(states).astype(jnp.float32),
                "latent": self.to_latent(states).astype(jnp.float32)}  # fmt: skip


def _latent_logits(model: Lapa, states: jax.Array, number) -> jax.Array:
    return model.to_latent(states).astype(jnp.float32)


def _embed_latent(model: Lapa, codes: jax.Array) -> jax.Array:
    return model.latent_embedding[codes].astype(jnp.dtype(model.llm.dtype))


def _attend(real: jax.Array, further: int) -> tuple[jax.Array, jax.Array]:
    """Which tokens each sees, bool [B, S, S], and their positions i32 [B, S], padding not counted."""
    real = jnp.concatenate([real, jnp.ones((real.shape[0], further), bool)], axis=1)
    order = jnp.arange(real.shape[1])
    # padding sees itself: a row without anything to see would be no number
    mask = ((order[None] <= order[:, None])[None] & real[:, None]) | jnp.eye(real.shape[1], dtype=bool)[None]
    return mask, jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)


class Model(Lapa, base.LatentPolicy):
    """The codes of a latent action, from an image and an instruction.

    Batches are those of `data.samples = "steps"` with the fields "image", "text" and "latent", images resized as
    `data.resize` "lapa" does. The loss is "latent", the cross-entropy of the codes given the true ones before. (The
    official one adds a hundredth of that of the words around the codes, which are always the same.)
    """

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes."""
        return {**self.observation(batch_size),
                "latent": np.zeros((batch_size, self.code_length), np.int32),
                "latent_mask": np.ones(batch_size, np.float32)}  # fmt: skip

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> Output:
        """The loss of a batch; nothing differs in training."""
        codes = batch["latent"]
        with self.adapters():
            sequence = self.sequence(batch, self.latent_prompt)
            logits = self.teacher_forced_logits(sequence, codes)
        if self.is_initializing():
            self.make_other_parameters(sequence)
        right = (jnp.argmax(logits, -1) == codes).mean(-1)
        return Output(losses={"latent": vla.cross_entropy(logits, codes).mean(-1)},
                      metrics={"latent_accuracy": right})  # fmt: skip

    @nn.nowrap
    def weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """1 for examples with a latent action, 0 for the others."""
        return {"latent": batch["latent_mask"], "latent_accuracy": batch["latent_mask"]}

    def predict(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The most likely codes i32 [B, N], one after the other, and "logits" f32 [B, N, K] given those before."""
        with self.adapters():
            codes, logits = self.latent_codes(self.sequence(batch, self.latent_prompt))
        return {"codes": codes, "logits": logits}

    def evaluate(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """As `vla.Model.evaluate`."""
        with self.adapters():
            sequence = self.sequence(batch, self.latent_prompt)
            _, logits = self.latent_codes(sequence)
            taught = self.teacher_forced_logits(sequence, batch["latent"])
        return vla.measures(logits, taught, batch["latent"], batch["latent_mask"])

    @nn.nowrap
    def summarize(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scalars of the arrays of `evaluate` over a whole data set; see `vla.summarize`."""
        return vla.summarize(arrays, self.codebook_size)


def official_sampler(codes: np.ndarray, end: int = 2, padding: int = 0) -> np.ndarray:
    """Codes int [..., N] as the released sampler of LAPA returns them: all behind the first code 2 are 0.

    It stops at Llama's id of the end of a text, 2, although what is sampled are latent codes, of which 2 is one. For
    comparisons alone; what is lost cannot be had back.
    """
    codes = np.asarray(codes)
    ended = np.cumsum(codes == end, axis=-1) - (codes == end) > 0
    return np.where(ended, padding, codes).astype(codes.dtype)
