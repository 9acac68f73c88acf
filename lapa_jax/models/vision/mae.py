"""A masked autoencoder (He et al. 2021, arXiv 2111.06377): a vision tower learned from images alone.

The tower sees a random quarter of an image's patches; a small decoder gets their features and, for each patch that is
hidden, the same learned vector, and predicts the pixels that are hidden. What the tower has to know for that are
features of the user's own images: `config.init_from.tower` of a tokenizer of features takes them from such a run.
"""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count, Dtype, Range, Remat
from lapa_jax.core.output import Output
from lapa_jax.models.base import ImageEncoder
from lapa_jax.models.probe import probe_delta
from lapa_jax.models.tokenizers.laq.modules import to_unit_range
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm
from lapa_jax.nn.patches import from_patches, patch_grid, to_patches
from lapa_jax.nn.transformer import run_stack
from lapa_jax.nn.vit import VisionTower, VitBlock, starting_positions

FLAT = 0.02
"""Standard deviation of a patch's pixels in [0, 1] below which it counts as flat: patches are scaled to the same
contrast, and what compression or a camera's noise leaves on a plain table would count as much as what lies on it."""


class Decoder(nn.Module):
    """Features of the patches that are seen to pixels of all. Attributes as of `Model`; pixels: numbers of a patch."""

    dim: int
    depth: int
    heads: int
    pixels: int
    dtype: jnp.dtype
    remat: str

    @nn.compact
    def __call__(self, features: jax.Array, order: jax.Array) -> jax.Array:
        """features: [N, V, D] of the first V patches of `order`, i32 [N, L], all patches -> f32 [N, L, pixels]."""
        (count, patches), seen = order.shape, features.shape[1]
        tokens = Linear(self.dim, dtype=self.dtype, name="embed")(features)
        hidden = self.param("mask_token", nn.initializers.normal(0.02), (self.dim,)).astype(self.dtype)
        tokens = jnp.concatenate([tokens, jnp.broadcast_to(hidden, (count, patches - seen, self.dim))], axis=1)
        # Back to where they lie in the image.
        x = jnp.take_along_axis(tokens, jnp.argsort(order)[..., None], axis=1)
        positions = self.param("positions", starting_positions, 0, round(patches**0.5), self.dim)
        block = VitBlock(self.heads, 4 * self.dim, "exact", False, 1e-6, self.dtype, name="layers")
        x, _ = run_stack(block, self.depth, self.remat, x + positions.astype(self.dtype))
        return Linear(self.pixels, name="to_pixels")(LayerNorm(name="norm_out")(x))


class Model(ImageEncoder):
    """The masked autoencoder.

    Batches hold "frames" [B, 2, H, W, 3], uint8 or f32 in [0, 1]. Loss: "reconstruction", the mean squared error of
    the hidden patches of both, each without its mean colour and, where it is not flat (`FLAT`), of variance 1.

    Attributes:
      image_size: side of the images in pixels; patches of the tower fill it.
      tower: what is learned, a model of `models/vision`: {"name": "vision.siglip", ...}, at the image's size.
      mask_ratio: share of the patches that are hidden.
      decoder_dim, decoder_depth, decoder_heads: of the decoder's blocks.
      dtype: "float32" or "bfloat16", of the decoder's computation; parameters and predicted pixels are float32.
      remat: "none", "dots" or "full": what the backward pass recomputes in the decoder to save memory.
    """

    image_size: Count = 224
    tower: VisionTower | None = None
    mask_ratio: Annotated[float, Range(above=0, below=1)] = 0.75
    decoder_dim: Count = 512
    decoder_depth: Count = 8
    decoder_heads: Count = 16
    dtype: Dtype = "float32"
    remat: Remat = "none"

    def setup(self):
        self.decoder = Decoder(self.decoder_dim, self.decoder_depth, self.decoder_heads, 3 * self.tower.patch**2,
                               jnp.dtype(self.dtype), self.remat)  # fmt: skip

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit together, with what to change."""
        if not isinstance(self.tower, VisionTower):
            given = None if self.tower is None else type(self.tower).__module__.rpartition(".")[2]
            raise UserError(f"tower is {given}; give the vision transformer that is learned, as "
                            "{'name': 'vision.siglip', ...}, or of vision.dinov2")  # fmt: skip
        patch_grid((self.image_size, self.image_size), self.tower.patch)  # what is predicted must fill the image
        if self.tower.image_size != self.image_size:
            raise UserError(f"image_size is {self.image_size} and tower.image_size {self.tower.image_size}; a tower "
                            "that is learned has a position for each patch of its images: give both the same")
        if not 0 < self.seen < self.grid[0] ** 2:
            raise UserError(f"mask_ratio {self.mask_ratio} of {self.grid[0] ** 2} patches hides "
                            f"{'all' if self.seen == 0 else 'none'} of them; give another, or smaller patches")
        if self.decoder_dim % self.decoder_heads:
            raise UserError(f"decoder_dim {self.decoder_dim} is not a multiple of decoder_heads {self.decoder_heads}")

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes."""
        return {"frames": np.zeros((batch_size, 2, self.image_size, self.image_size, 3), np.uint8)}

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (self.image_size // self.tower.patch,) * 2

    @property
    def seen(self) -> int:
        """How many patches of an image the tower sees."""
        return round((1 - self.mask_ratio) * self.grid[0] ** 2)

    def __call__(self, batch, *, train: bool) -> Output:
        """The loss of a batch; which patches are hidden is drawn anew where `train`."""
        images = self._images(batch["frames"])
        error, _ = self._errors(images, *self._predict(images, train))
        return Output(losses={"reconstruction": _of_pairs(error)}, metrics={})

    def encode(self, images: jax.Array) -> jax.Array:
        """Images uint8, or f32 in [0, 1], [B, H, W, 3] -> the tower's features f32 [B, rows, columns, D], of all."""
        return self.tower(images).astype(jnp.float32).reshape(len(images), *self.grid, -1)

    def predict(self, batch) -> dict[str, jax.Array]:
        """Of "frames": which patches are "hidden", bool [B, 2, rows, columns], and the "reconstruction" f32
        [B, 2, H, W, 3], in which these are predicted, with the mean colour and the contrast that they truly have, since
        nothing else is predicted, and the others are as they are."""
        images = self._images(batch["frames"])
        order, predicted = self._predict(images, train=False)
        # The place of a patch in the order says whether it is among the first, which are seen.
        hidden = jnp.argsort(order) >= self.seen
        patches, mean, std = self._patches(images)
        whole = jnp.where(hidden[..., None], predicted * std + mean, patches)
        shape = batch["frames"].shape
        return {"hidden": hidden.reshape(*shape[:2], *self.grid),
                "reconstruction": from_patches(whole, self.grid, self.tower.patch).reshape(shape)}  # fmt: skip

    def evaluate(self, batch) -> dict[str, jax.Array]:
        """"mse" as the loss; "mse_flat" of each hidden patch's own mean colour; "feature_change" [B, 4 * D], the
        features of the second frame minus those of the first, as means over each quarter of the image; "net_action" and
        "episode_id" where the batch has them."""
        images = self._images(batch["frames"])
        error, flat = self._errors(images, *self._predict(images, train=False))
        pooled = _halves(_halves(self.encode(images), 1), 2).reshape(len(images), -1)
        return {"mse": _of_pairs(error), "mse_flat": _of_pairs(flat), "feature_change": pooled[1::2] - pooled[::2],
                **{name: batch[name] for name in ("net_action", "episode_id") if name in batch}}  # fmt: skip

    @nn.nowrap
    def summarize(self, arrays) -> dict[str, float]:
        """Scalars from the arrays of `evaluate` over a data set.

        Returns:
          "mse"; "masked_r2", 1 minus its quotient with that of each hidden patch's own mean colour: 0 where nothing
          more than a colour is predicted, 1 where all is; "feature_probe_r2", how much of the action between the frames
          can be read off the change of the features, see `lapa_jax.models.probe`, where actions are known and there are
          episodes of even and of odd index, and "feature_probe_pairs", how many pairs that was fitted on.
        """
        mse, flat = (float(arrays[name].mean()) for name in ("mse", "mse_flat"))
        result = {"mse": mse, "masked_r2": 1 - mse / max(flat, 1e-12)}
        if "net_action" not in arrays or "episode_id" not in arrays:
            return result
        episode = arrays["episode_id"]
        probe = probe_delta(arrays["feature_change"], arrays["net_action"], episode)
        if probe is None:
            return result
        return result | {"feature_probe_r2": probe.r2, "feature_probe_pairs": float(np.sum(episode % 2 == 0))}

    @nn.nowrap
    def _images(self, frames: jax.Array) -> jax.Array:
        """Both frames of every pair, one behind the other, f32 [2 * B, H, W, 3] in [0, 1]."""
        shape = (self.image_size, self.image_size, 3)
        return to_unit_range(frames, (2, *shape)).reshape(-1, *shape)

    def _predict(self, images: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """An order of the patches of each image, i32 [N, L], of which the tower sees the first `seen`, and what is
        predicted of all of them, scaled, f32 [N, L, pixels]. Evaluation hides the same ones every time."""
        key = self.make_rng("noise") if train else jax.random.key(0)
        order = jnp.argsort(jax.random.uniform(key, (len(images), self.grid[0] * self.grid[1])))
        return order, self.decoder(self.tower(images, order[:, : self.seen]), order)

    def _errors(self, images: jax.Array, order: jax.Array, predicted: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The mean squared errors f32 [N] over the hidden patches: of the prediction, and of their mean colours."""
        patches, mean, std = self._patches(images)
        hidden = order[:, self.seen :, None]
        target, predicted = (jnp.take_along_axis(x, hidden, axis=1) for x in ((patches - mean) / std, predicted))
        # A patch's mean colour is 0 in its own scale.
        return jnp.square(predicted - target).mean((1, 2)), jnp.square(target).mean((1, 2))

    @nn.nowrap
    def _patches(self, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Patches f32 [N, L, pixels], their mean colours of that shape, and the scale of each, [N, L, 1]."""
        patches = to_patches(images, self.tower.patch)
        # Of each colour: with one mean over all three, as published, most of what there is to predict of a plain table
        # is its hue.
        colors = patches.reshape(*patches.shape[:2], 3, -1)
        mean = jnp.broadcast_to(colors.mean(-1, keepdims=True), colors.shape).reshape(patches.shape)
        return patches, mean, jnp.sqrt(jnp.square(patches - mean).mean(-1, keepdims=True) + FLAT**2)


def _halves(values: jax.Array, axis: int) -> jax.Array:
    """The means over the two halves of an axis, which has the length 2 then."""
    return jnp.stack([half.mean(axis) for half in jnp.array_split(values, 2, axis)], axis)


def _of_pairs(values: jax.Array) -> jax.Array:
    """Values of images [2 * B] -> means of pairs [B]."""
    return values.reshape(-1, 2).mean(1)
