"""What vision-language-action models share: two vision towers, a projector and a text decoder that read pictures and an
instruction, and queries behind them at which heads read off what to do.

The sequence is [bos][pictures][instruction][queries]: after OpenVLA (Kim et al. 2024), whose towers are SigLIP and
DINOv2 side by side (Karamcheti et al. 2024). One small tower may stand in their place.
"""

import contextlib
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Dtype, FromData, Range
from lapa_jax.nn import lora
from lapa_jax.nn.attention import Cache
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm
from lapa_jax.nn.patches import whole_patches
from lapa_jax.nn.splash import CausalMask


def body_from_data(spec: Mapping, source) -> dict:
    """Fills in `image_size`, `cameras`, `text_length` and the decoder's `vocab` where they are None.

    Args:
      spec: the model's fields. source: samples with "image" and tokens as "text".

    Raises:
      UserError: the samples do not fit the fields.
    """
    batch = source.batch([])
    if missing := sorted({"image", "text"} - set(batch)):
        raise UserError(f"{spec['name']} needs {' and '.join(missing)} of each step; name them in data.fields")
    if source.vocabulary is None:
        raise UserError('the instructions are no tokens; set data.text_tokenizer, {"name": "bytes"} for one')
    image = batch["image"].shape[1:]
    if image[-2] != image[-3]:
        raise UserError(f"the pictures are {image[-3]}x{image[-2]}; the towers take square ones: set data.image_size")
    sizes = {"image_size": image[-2], "cameras": image[0] if len(image) == 4 else 1,
             "text_length": batch["text"].shape[1]}  # fmt: skip
    filled = {**spec, **agree(spec, sizes)}
    return {**filled, "llm": {**spec["llm"], "vocab": _vocabulary(spec["llm"].get("vocab"), source.vocabulary)}}


def latent_from_data(spec: Mapping, source) -> dict:
    """Fills in `code_length` and `codebook_size` where they are None, as the labels tell.

    Raises:
      UserError: no labels, places with different numbers of codes, or fields that say otherwise.
    """
    batch = source.batch([])
    if "latent" not in batch:
        raise UserError(f"{spec['name']} learns latent actions; name 'latent' in data.fields and set data.labels to "
                        "what launch/label.py wrote")
    fields, sizes = {"code_length": batch["latent"].shape[1]}, (source.label_info or {}).get("codebook_size")
    if sizes is not None:
        if len(different := sorted(set(np.ravel(sizes).tolist()))) > 1:
            raise UserError(f"the labels have codebooks of {different} codes; the head needs one size for all places")
        fields["codebook_size"] = different[0]
    elif spec.get("codebook_size") is None:
        raise UserError("nothing says of how many codes the latents are: set model.codebook_size")
    return agree(spec, fields)


def agree(spec: Mapping, data_fields: Mapping) -> dict:
    """The fields that the data tell; a UserError where one is set to something else."""
    for name, value in data_fields.items():
        if spec.get(name) not in (None, value):
            raise UserError(f"model.{name} is {spec[name]}, the data have {value}; leave it None, or change the data")
    return dict(data_fields)


def _vocabulary(given: int | None, needed: int) -> int:
    if given is not None and given < needed:
        raise UserError(f"model.llm.vocab is {given}, the tokenizer has {needed} tokens; give data.text_tokenizer the "
                        "one that belongs to the weights")
    return given or needed


OF_ONE_TOWER = ("gelu-mlp", "linear")


class Prefix(NamedTuple):
    """What comes before the queries. embeddings: [B, L, dim]. real: bool [B, L], False for padding."""

    embeddings: jax.Array
    real: jax.Array


class Projector(nn.Module):
    """Features of patches to the decoder's width.

    Attributes:
      dim: of the result.
      kind: "layernorm": norm, linear, GELU, linear, norm (the specification's). Prismatic's: "openvla" for two towers,
        linear to four times the features' width, GELU, linear, GELU, linear; for one tower "gelu-mlp", linear, GELU,
        linear, and "linear".
      dtype: of the computation.
    """

    dim: int
    kind: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., dim] in `dtype`."""
        linear = lambda width, name: Linear(width, dtype=self.dtype, name=name)  # noqa: E731
        if self.kind == "openvla":
            x = nn.gelu(linear(4 * x.shape[-1], "widen")(x), approximate=False)
            x = nn.gelu(linear(self.dim, "hidden")(x), approximate=False)
            return linear(self.dim, "out")(x)
        if self.kind in OF_ONE_TOWER:
            x = x if self.kind == "linear" else nn.gelu(linear(self.dim, "hidden")(x), approximate=False)
            return linear(self.dim, "out")(x)
        x = LayerNorm(dtype=self.dtype, name="norm_in")(x)
        x = nn.gelu(linear(self.dim, "hidden")(x), approximate=False)
        return LayerNorm(dtype=self.dtype, name="norm_out")(linear(self.dim, "out")(x))


class VisionLanguageModel(nn.Module):
    """The body; models add queries and heads.

    Attributes:
      siglip, dinov2: towers, `vision.siglip` and `vision.dinov2`, that cut pictures into the same grid. With a
        projection for one tower only one of them.
      vision: one tower in place of the two, which also sees the instruction: `vision.film_conv`.
      llm: `llama` with head "none".
      image_size: side of the images in pixels; a border that makes no whole patch is not seen. None is taken from the
        data.
      cameras: V, images a step; None is taken from the data.
      text_length: L, tokens that instructions are padded to; None is taken from the data. The first one is the
        tokenizer's bos.
      projection: kind of `Projector`, "layernorm", "openvla", or of one tower "gelu-mlp" or "linear".
      image_attention: whether the tokens of pictures see those behind them too: "causal" or "bidirectional".
      lora_rank: rank of the low-rank adapters (Hu et al. 2021) on linear layers; 0 for none. lora_alpha: their
        strength. lora_modules: regular expression of the layers' names.
      dtype: "float32" or "bfloat16", of what is not in the three parts, which have their own.
    """

    siglip: nn.Module | None = None
    dinov2: nn.Module | None = None
    vision: nn.Module | None = None
    llm: nn.Module | None = None
    image_size: FromData = None
    cameras: FromData = None
    text_length: FromData = None
    projection: Literal["layernorm", "openvla", "gelu-mlp", "linear"] = "layernorm"
    image_attention: Literal["causal", "bidirectional"] = "causal"
    lora_rank: Annotated[int, Range(0)] = 0
    lora_alpha: float = 16.0
    lora_modules: str = "llm/decoder/layers/.*"
    dtype: Dtype = "float32"

    def setup(self):
        self.projector = Projector(self.llm.dim, self.projection, jnp.dtype(self.dtype))

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit together, with what to change."""
        given = [name for name in ("siglip", "dinov2", "vision") if getattr(self, name) is not None]
        possible = (["siglip"], ["dinov2"]) if self.projection in OF_ONE_TOWER else (["siglip", "dinov2"], ["vision"])
        if self.llm is None or given not in possible:
            towers = "one of siglip and dinov2" if self.projection in OF_ONE_TOWER else (
                "siglip and dinov2 or, in place of both, vision")  # fmt: skip
            raise UserError(f"a vision-language model with the projection '{self.projection}' needs llm, and {towers}; "
                            f"here {_names(self)}")  # fmt: skip
        if self.llm.head != "none":
            raise UserError(f"llm.head is '{self.llm.head}'; set 'none': actions are read off by heads of their own")
        if self.vision is None:
            self._check_patches()

    @nn.nowrap
    def _check_patches(self) -> None:
        """That the two towers cut the image alike, and that it holds a patch."""
        if self.siglip and self.dinov2 and self.siglip.patch != self.dinov2.patch:
            raise UserError(f"siglip.patch is {self.siglip.patch}, dinov2.patch {self.dinov2.patch}; their features "
                            "are put together patch by patch, so both must be the same")
        whole_patches((self.image_size, self.image_size), self.patch)

    @property
    def patch(self) -> int:
        """Side of the patches in pixels, the same for all towers."""
        return (self.siglip or self.dinov2).patch

    @property
    def image_tokens(self) -> int:
        """How many tokens the pictures of all cameras are."""
        return self.cameras * (self.vision.tokens if self.vision else (self.image_size // self.patch) ** 2)

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes, without what heads learn from."""
        views = (self.cameras,) if self.cameras > 1 else ()
        return {
            "image": np.zeros((batch_size, *views, self.image_size, self.image_size, 3), np.uint8),
            "text": np.zeros((batch_size, self.text_length), np.int32),
            "text_mask": np.ones((batch_size, self.text_length), np.float32),
        }

    def embed_prefix(self, batch: Mapping[str, jax.Array]) -> Prefix:
        """Embeds pictures uint8 [B, (V,) H, W, 3] and the tokens "text" i32 [B, L] with "text_mask" [B, L]."""
        return self.build_prefix(batch, self.encode_images(batch))

    def encode_images(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Tokens of pictures uint8 [B, (V,) H, W, 3]: [B, image_tokens, dim]."""
        images = batch["image"]
        if self.vision:
            features = self.vision(images, self.llm.embed(batch["text"]), batch["text_mask"])
        else:
            features = jnp.concatenate([tower(images) for tower in (self.siglip, self.dinov2) if tower], axis=-1)
        return self.projector(features.reshape(images.shape[0], -1, features.shape[-1]))

    def build_prefix(self, batch: Mapping[str, jax.Array], visual: jax.Array) -> Prefix:
        """What `embed_prefix` gives, from what `encode_images` gave."""
        words, real = self.llm.embed(batch["text"]), batch["text_mask"] > 0
        visual = visual.astype(words.dtype)
        seen = jnp.ones(visual.shape[:2], bool)
        return Prefix(jnp.concatenate([words[:, :1], visual, words[:, 1:]], axis=1),
                      jnp.concatenate([real[:, :1], seen, real[:, 1:]], axis=1))  # fmt: skip

    def before_last(self, batch: Mapping[str, jax.Array]) -> tuple[Prefix, jax.Array]:
        """The prompt without its last token, and that token i32 [B, 1], whose state decides on the first one behind."""
        mask = batch["text_mask"]
        last = jnp.sum(mask > 0, axis=1, keepdims=True).astype(jnp.int32) - 1
        token = jnp.take_along_axis(batch["text"], last, axis=1)
        before = mask * (jnp.arange(mask.shape[1]) < last)
        return self.embed_prefix({**batch, "text_mask": before}), token

    def backbone(self, prefix: Prefix, queries: jax.Array) -> jax.Array:
        """Hidden states [B, Q, dim] at queries [B, Q, dim] behind the prefix; each sees those before it."""
        x = jnp.concatenate([prefix.embeddings, queries.astype(prefix.embeddings.dtype)], axis=1)
        mask, positions = self._places(prefix.real, queries.shape[1])
        return self.llm(embeddings=x, mask=mask, positions=positions)[:, -queries.shape[1] :]

    def prefill(self, prefix: Prefix, query: jax.Array, room: int) -> tuple[jax.Array, Cache]:
        """The hidden state [B, 1, dim] of the first query [B, 1, dim], and a cache with room for `room` more."""
        x = jnp.concatenate([prefix.embeddings, query.astype(prefix.embeddings.dtype)], axis=1)
        mask, positions = self._places(prefix.real, 1)
        cache = self.llm.new_cache(x.shape[0], x.shape[1] + room)
        mask = jnp.pad(mask.whole(), ((0, 0), (0, 0), (0, room)))
        out, cache = self.llm(embeddings=x, mask=mask, positions=positions, cache=cache)
        return out[:, -1:], cache

    def decode_step(self, prefix: Prefix, query: jax.Array, number: int, cache: Cache) -> tuple[jax.Array, Cache]:
        """The same for the query of that number, 1, 2, ..., which sees those before it in the cache."""
        slots, length = cache.key.shape[2], prefix.real.shape[1]
        seen = jnp.concatenate([prefix.real, jnp.ones((query.shape[0], slots - length), bool)], axis=1)
        mask = (seen & (jnp.arange(slots) <= length + number))[:, None]
        position = jnp.sum(prefix.real, axis=1, keepdims=True) + number
        return self.llm(embeddings=query, mask=mask, positions=position, cache=cache, at=length + number)

    def adapters(self) -> contextlib.AbstractContextManager:
        """Puts the low-rank adapters, if any, on what is computed within: on a whole forward pass."""
        return lora.adapters(self.lora_rank, self.lora_alpha, self.lora_modules)

    def _places(self, real: jax.Array, queries: int) -> tuple[CausalMask, jax.Array]:
        """Which tokens each of S sees, and their positions i32 [B, S], padding not counted."""
        real = jnp.concatenate([real, jnp.ones((real.shape[0], queries), bool)], axis=1)
        image = (1, 1 + self.image_tokens) if self.image_attention == "bidirectional" else (0, 0)
        return CausalMask(real, image), jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)


def _names(model: VisionLanguageModel) -> str:
    given = [name for name in ("siglip", "dinov2", "vision", "llm") if getattr(model, name) is not None]
    return f"only {' and '.join(given)} are set" if given else "none is set"
