"""What shows each kind of model while it trains, see `train.images`: `launch/train.py` hands it to the loop.

Nothing here imports matplotlib, see `plots.sketch`.
"""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lapa_jax.evaluate.latent_actions.feature_colors import Colors
from lapa_jax.evaluate.latent_actions.gallery import names, typical
from lapa_jax.nn.quantizers import usage
from lapa_jax.plots import masked, pairs, training
from lapa_jax.train.ema import averaged
from lapa_jax.train.images import Drawing
from lapa_jax.train.setup import quick_options
from lapa_jax.train.sharding import shard_batch

PAIRS, STARTS, SEQUENCES = 8, 4, 8
Arrays = Mapping[str, np.ndarray]


class FramePairs:
    """Eight fixed pairs of the held-out ones with their reconstructions, and typical latent actions on the first frames
    of four."""

    def __init__(self, model, mesh: Mesh):
        self._model, self._mesh = model, mesh
        whole = NamedSharding(mesh, PartitionSpec())
        self._frames: np.ndarray | None = None
        self._rows = np.zeros(0, int)
        self._decode, self._observe = (
            jax.jit(function, out_shardings=whole, compiler_options=quick_options(mesh))
            for function in (self._decoded, self._observed)
        )

    def compute(self, variables, arrays: Arrays, batches: Callable[[], Iterable[dict]]) -> Arrays:
        """See `train.images.Drawing`."""
        if self._frames is None:
            self._frames, self._rows = self._choose(batches)
        first = self._frames[:, 0]
        latents, shares = typical(arrays, SEQUENCES)
        # As many at each evaluation, however few the model uses: another number would be another program.
        filled = latents[np.arange(SEQUENCES) % len(latents)]
        # The pairs' codes are those of the evaluation: to encode them here too would more than double what is compiled.
        # And in one go: a second decoder would take as long to compile again.
        frames = np.concatenate([first, first[:STARTS].repeat(SEQUENCES, axis=0)])
        of_pairs = arrays["codes" if self._model.discrete else "delta"][self._rows]
        decoded = jax.device_get(self._decode(variables, frames, np.concatenate([of_pairs, *[filled] * STARTS])))
        shown = self._frames / np.float32(255) if self._frames.dtype == np.uint8 else self._frames
        if not self._model.predicts_images:
            shown = jax.device_get(self._observe(variables, shown))
        gallery = decoded[PAIRS:].reshape(STARTS, SEQUENCES, *decoded.shape[1:])[:, : len(latents)]
        counts = usage.histogram(arrays["codes"], self._model.codebook_size) if self._model.discrete else ()
        return {"shown": shown, "reconstructions": decoded[:PAIRS], "decoded": gallery, "latents": latents,
                "shares": shares, "counts": counts}  # fmt: skip

    def draw(self, path, content: Arrays) -> None:
        """See `train.images.Drawing`."""
        images = [content[name] for name in ("shown", "reconstructions", "decoded")]
        if not self._model.predicts_images:
            height, width = self._frames.shape[2:4]
            colors = Colors(content["shown"])
            images = [colors.paint(values, self._model.cell, (height, width)) for values in images]
        columns = [f"{name}\n{share:.0%}" for name, share in zip(names(content["latents"]), content["shares"])]
        counts = content["counts"]
        pairs.frame_pairs(path, *images, columns, counts, [usage.perplexity(row) for row in counts])

    def _choose(self, batches: Callable[[], Iterable[dict]]) -> tuple[np.ndarray, np.ndarray]:
        """The pairs u8 [8, 2, H, W, 3] of the first batch in which most changes, where there is something to see; and
        which rows of the evaluation they are."""
        whole = _first_batch(self._mesh, batches)
        frames = whole["frames"][whole["mask"] > 0]
        change = np.abs(frames[:, 1].astype(np.float32) - frames[:, 0]).mean(axis=(1, 2, 3))
        order = np.argsort(-change, kind="stable")
        rows = order[np.arange(PAIRS) % len(order)]
        return frames[rows], rows

    def _decoded(self, variables, frames: jax.Array, latents: jax.Array) -> jax.Array:
        return self._model.apply(averaged(variables), frames, latents, method="decode").astype(jnp.float32)

    def _observed(self, variables, frames: jax.Array) -> jax.Array:
        return self._model.apply(averaged(variables), frames, method="observe").astype(jnp.float32)


def _first_batch(mesh: Mesh, batches: Callable[[], Iterable[dict]]) -> Arrays:
    """Of the first evaluation batch "frames" and "mask": of all hosts, in the order in which evaluation has them."""
    batch = {name: value for name, value in next(iter(batches())).items() if name in ("frames", "mask")}
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.device_get(jax.jit(lambda batch: batch, out_shardings=whole)(shard_batch(mesh, batch)))


class MaskedImages:
    """Eight fixed images of the held-out ones, what is seen of them, and what is predicted from that."""

    def __init__(self, model, mesh: Mesh):
        self._mesh = mesh
        self._frames: np.ndarray | None = None
        predict = lambda variables, frames: model.apply(averaged(variables), {"frames": frames}, method="predict")  # noqa: E731
        whole = NamedSharding(mesh, PartitionSpec())
        self._predict = jax.jit(predict, out_shardings=whole, compiler_options=quick_options(mesh))

    def compute(self, variables, arrays: Arrays, batches: Callable[[], Iterable[dict]]) -> Arrays:
        """See `train.images.Drawing`."""
        if self._frames is None:
            whole = _first_batch(self._mesh, batches)
            self._frames = whole["frames"][whole["mask"] > 0][:PAIRS]
        predicted = jax.device_get(self._predict(variables, self._frames))
        return {name: value[:, 0] for name, value in {"images": self._frames, **predicted}.items()}

    def draw(self, path, content: Arrays) -> None:
        """See `train.images.Drawing`."""
        masked.draw(path, content["images"], content["hidden"], content["reconstruction"])


class OfArrays:
    """What needs no more than the arrays of the evaluation."""

    def __init__(self, model, mesh: Mesh):
        self._model = model

    def compute(self, variables, arrays: Arrays, batches: Callable[[], Iterable[dict]]) -> Arrays:
        """See `train.images.Drawing`."""
        return arrays


class LatentPolicies(OfArrays):
    """True against predicted codes."""

    def draw(self, path, content: Arrays) -> None:
        """See `train.images.Drawing`."""
        kept = content["latent_mask"] > 0
        training.confusion(path, content["codes"][kept], content["predicted"][kept], self._model.codebook_size)


class ActionPolicies(OfArrays):
    """Predicted against true actions."""

    def draw(self, path, content: Arrays) -> None:
        """See `train.images.Drawing`."""
        # A step exists where any dimension counts; constant dimensions have the weight 0 everywhere.
        mask = content["weight"].max(2) > 0
        training.actions(path, content["action"], content["prediction"], mask)


class InContextPolicies(OfArrays):
    """Predicted against true actions, with the right prompts."""

    def draw(self, path, content: Arrays) -> None:
        """See `train.images.Drawing`."""
        training.actions(path, content["action"], content["prediction"], content["action_mask"] > 0)


class ActionTokenizers(OfArrays):
    """Decoded against true actions, and a map of the codes by what they stand for."""

    def draw(self, path, content: Arrays) -> None:
        """See `train.images.Drawing`."""
        model = self._model
        training.actions(path, content["action"], content["reconstruction"], content["action_mask"] > 0,
                         content["codes"], model.codebook_sizes, model.code_names)  # fmt: skip


def feature_tokenizers(model, mesh: Mesh) -> Drawing | None:
    """What shows a tokenizer of features; None for one without categories."""
    return None if model.layout() is None else CodebookMaps(model, mesh)


class CodebookMaps:
    """Maps of the codebooks of a tokenizer of features."""

    def __init__(self, model, mesh: Mesh):
        self._model = model
        self._gather = jax.jit(lambda books: books, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def compute(self, variables, arrays: Arrays, batches: Callable[[], Iterable[dict]]) -> Arrays:
        """See `train.images.Drawing`."""
        books = jax.device_get(self._gather(variables["codebook"]["codebooks"]["codes"]))
        return {"latent": arrays["latent"], "codes": arrays["codes"], "books": books}

    def draw(self, path, content: Arrays) -> None:
        """See `train.images.Drawing`."""
        # A model of features imports what the others do without.
        from lapa_jax.plots import codebooks

        codebooks.codebook_maps(path, content, content["books"], self._model.layout())
