"""Latent action tokenizers at inference: frame pairs to codes, and codes back to frames."""

import functools

import jax
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.inference.base import finite
from lapa_jax.inference.frames import FrameModel, check_frames


class LatentActionTokenizer(FrameModel):
    """A trained latent action model that encodes frame pairs and decodes codes. Attributes as of `TrainedModel`."""

    def __init__(self, model, variables, **about):
        super().__init__(model, variables, **about)
        self._encode = jax.jit(functools.partial(_apply_encode, model))
        self._decode = jax.jit(functools.partial(_apply_decode, model))
        self._observe = jax.jit(functools.partial(_apply_observe, model))

    @property
    def discrete(self) -> bool:
        """Whether a latent action is codes; otherwise it is the delta itself."""
        return self.model.discrete

    @property
    def codebook_size(self) -> int | None:
        """K: codes are 0..K-1; None where there are none."""
        return self.model.codebook_size if self.discrete else None

    @property
    def code_length(self) -> int:
        """N: codes per frame pair, or vectors of its delta."""
        return self.model.code_seq_len

    @property
    def delta_shape(self) -> tuple[int, int]:
        """N and Q, of a delta."""
        return self.model.code_seq_len, self.model.quant_dim

    def encode(self, frames, *, dataset: str | None = None) -> np.ndarray:
        """Latent action codes of frame pairs, or where there are none their deltas.

        Args:
          frames: `[B, 2, H, W, 3]` or `[2, H, W, 3]`, uint8 or float32 in [0, 1], any H and W (resized as in training).
          dataset: of a tokenizer of several: as whose images they are resized.

        Returns:
          Codes int32 `[B, N]`, or `[N]` for a single pair, values in 0..K-1; where nothing is rounded deltas float32
          `[B, N, Q]`, or `[N, Q]`.

        Raises:
          UserError: for another shape, type or range.
        """
        return self.encode_both(frames, dataset=dataset)["codes" if self.discrete else "delta"]

    def encode_both(self, frames, *, dataset: str | None = None) -> dict[str, np.ndarray]:
        """Arguments as of `encode` -> "delta" float32 `[B, N, Q]`, and where there are codes "codes" int32 `[B, N]`;
        without B for a single pair."""
        frames = check_frames(frames, "frames", (4, 5))
        pairs = frames if frames.ndim == 5 else frames[None]
        if pairs.shape[1] != 2:
            raise UserError(f"frames has shape {frames.shape}; a pair is [2, H, W, 3], a batch [B, 2, H, W, 3]")
        encoded = self.run(self._encode, self.fit(pairs, "frames", dataset))
        return encoded if frames.ndim == 5 else {name: rows[0] for name, rows in encoded.items()}

    def decode(self, first_frame, codes, *, dataset: str | None = None) -> np.ndarray:
        """The frames that latent actions lead to.

        Args:
          first_frame: `[B, H, W, 3]` or `[H, W, 3]`, as in `encode`; one frame serves all codes of a batch.
          codes: integers `[B, N]` or `[N]`, values in 0..K-1, or, where there are no codes, deltas `[B, N, Q]` or
            `[N, Q]`; one serves all frames of a batch.
          dataset: as in `encode`.

        Returns:
          float32 `[B, h, w, 3]` at the model's image size, not clipped; `[h, w, 3]` if neither argument was a batch. Of
          a model of features `[B, rows, columns, D]`, what `observe` would give of the frames.

        Raises:
          UserError: for another shape, type or range.
        """
        first = check_frames(first_frame, "first_frame", (3, 4))
        codes = self._check_codes(codes) if self.discrete else self._check_delta(codes)
        each = (self.code_length,) if self.discrete else self.delta_shape
        single = first.ndim == 3 and codes.ndim == len(each)
        first, codes = first.reshape(-1, *first.shape[-3:]), codes.reshape(-1, *each)
        if len(first) != len(codes) and 1 not in (len(first), len(codes)):
            raise UserError(f"{len(first)} first frames and {len(codes)} latent actions do not go together")
        count = max(len(first), len(codes))
        first = self.fit(first, "first_frame", dataset)
        first = np.broadcast_to(first, (count, *first.shape[1:]))
        frames = self.run(self._decode, first, np.broadcast_to(codes, (count, *each)))
        return frames[0] if single else frames

    @property
    def predicts_images(self) -> bool:
        """Whether the model predicts frames; otherwise features of their patches."""
        return self.model.predicts_images

    def observe(self, frames, *, dataset: str | None = None) -> np.ndarray:
        """What the model predicts of frames `[B, H, W, 3]`, as in `encode`: their pixels as float32 in [0, 1], or the
        features of their patches, float32 `[B, rows, columns, D]`."""
        return self.run(self._observe, self.fit(check_frames(frames, "frames", (4,)), "frames", dataset))

    def _check_codes(self, codes) -> np.ndarray:
        codes = np.asarray(codes)
        shape_fits = codes.ndim in (1, 2) and codes.size and codes.shape[-1] == self.code_length
        if codes.dtype.kind not in "iu" or not shape_fits:
            raise UserError(
                f"codes is {codes.dtype} {codes.shape}; integers [B, {self.code_length}] or [{self.code_length}] "
                "are expected"
            )
        if not (0 <= codes.min() and codes.max() < self.codebook_size):
            raise UserError(f"codes holds {codes.min()}..{codes.max()}; the codebook has 0..{self.codebook_size - 1}")
        return codes.astype(np.int32)

    def _check_delta(self, delta) -> np.ndarray:
        delta, (length, width) = np.asarray(delta), self.delta_shape
        if delta.dtype.kind != "f" or delta.ndim not in (2, 3) or not delta.size or delta.shape[-2:] != (length, width):
            raise UserError(f"this tokenizer has no codes, and decodes deltas: floats [B, {length}, {width}] or "
                            f"[{length}, {width}], as encode gives them; this is {delta.dtype} {delta.shape}")
        return finite(delta.astype(np.float32), "codes")


def _apply_encode(model, variables, frames):
    return model.apply(variables, frames, method="encode")


def _apply_decode(model, variables, first, codes):
    return model.apply(variables, first, codes, method="decode").astype("float32")


def _apply_observe(model, variables, frames):
    frames = frames / 255 if frames.dtype == "uint8" else frames
    return model.apply(variables, frames.astype("float32"), method="observe")
