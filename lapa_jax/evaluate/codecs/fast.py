"""Chunks as rounded cosine coefficients, joined to tokens by byte-pair encoding: after FAST (Pertsch et al. 2025).

arXiv 2501.09747: normalise q01..q99 to -1..1, transform each dimension over time (orthonormal DCT-II), round
`scale * coefficient`, write lowest frequencies first, and let BPE merge what often stands together. Cosines are
scipy's, BPE is Hugging Face's `tokenizers`, trained on the training chunks.

A chunk has a fixed number of coefficients and a varying number of tokens, so a policy can produce sequences that stand
for fewer or more coefficients than a chunk has: those are the malformed chunks that users of FAST report. Dimensions
that are constant are left out. Coefficients beyond those of the training data become the largest or least of them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.fft

from lapa_jax.core.errors import UserError
from lapa_jax.data.normalize import Normalizer
from lapa_jax.evaluate.codecs.base import Codec

FIRST = 0x10000
"""The character of coefficient 0: beyond surrogates, and nothing there is a space or is normalised away."""


class Fast(Codec):
    """A varying number of tokens from one vocabulary.

    Args:
      scale: what coefficients are multiplied by before they are rounded; FAST uses 10.
      vocabulary: of tokens, FAST uses 1024. There are fewer where little data offer fewer merges, and twice as many as
        different coefficients where those leave no room for merges.
    """

    family = "DCT + BPE"

    def __init__(self, scale: float = 10.0, vocabulary: int = 1024):
        if not scale > 0:
            raise UserError(f"a DCT scale of {scale} rounds everything to nothing; FAST uses 10")
        self.scale, self.vocabulary, self.usual = scale, vocabulary, scale == 10 and vocabulary == 1024
        self.name = f"DCT + BPE, scale {scale:g}, {vocabulary} tokens"

    def _fit(self, chunks: np.ndarray, summary: Mapping) -> None:
        self._normalizer = Normalizer(summary, "q01_q99")
        self._moving = np.flatnonzero(self._normalizer.scale != 0)
        self._length = self.shape[0] * len(self._moving)
        whole = self.coefficients(chunks)
        self._least, self._most = int(whole.min(initial=0)), int(whole.max(initial=0))
        alphabet = self._most - self._least + 1
        # Each coefficient needs a token of its own before anything is merged.
        self._bpe = _train(self._texts(whole), alphabet, max(self.vocabulary, 2 * alphabet))
        pieces = [self._bpe.id_to_token(i) for i in range(self._bpe.get_vocab_size())]
        self._pieces = [np.array([ord(c) - FIRST for c in piece], np.int64) + self._least for piece in pieces]
        self._lengths = np.array([len(piece) for piece in pieces])

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self._pieces)

    def coefficients(self, chunks: np.ndarray) -> np.ndarray:
        """int64[n, T * moving dimensions] of chunks f32[n, T, A], rounded, lowest frequencies first."""
        normal = self._normalizer.normalize(chunks)[..., self._moving].astype(np.float64)
        spectrum = scipy.fft.dct(normal, axis=1, norm="ortho")
        return np.rint(self.scale * spectrum).astype(np.int64).reshape(len(chunks), -1)

    def pieces(self, coefficients: np.ndarray) -> list[np.ndarray]:
        """Tokens int32[...] of coefficients int64[n, ...] within the range of the training data: no loss."""
        encodings = self._bpe.encode_batch(self._texts(coefficients), add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in encodings]

    def joined(self, sequence: np.ndarray) -> np.ndarray:
        """The coefficients int64[...] that tokens stand for, however many."""
        return np.concatenate([self._pieces[token] for token in sequence] or [np.empty(0, np.int64)])

    def alphabets(self, sequence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full(len(sequence), self.size), np.zeros(len(sequence), np.int64)

    def _texts(self, coefficients: np.ndarray) -> list[str]:
        # Hugging Face's BPE takes text, so that each coefficient becomes a character.
        codes = (coefficients - self._least + FIRST).astype("<u4")
        return [row.tobytes().decode("utf-32-le") for row in codes]

    def _encode(self, chunks: np.ndarray) -> list[np.ndarray]:
        return self.pieces(np.clip(self.coefficients(chunks), self._least, self._most))

    def _is_chunk(self, sequence: np.ndarray) -> bool:
        sequence = np.asarray(sequence, np.int64)
        if len(sequence) and not 0 <= sequence.min() <= sequence.max() < self.size:
            return False
        return int(self._lengths[sequence].sum()) == self._length

    def _decode(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        whole = np.stack([self.joined(sequence) for sequence in tokens])
        normal = np.zeros((len(tokens), *self.shape))
        spectrum = whole.reshape(len(tokens), self.shape[0], -1) / self.scale
        normal[..., self._moving] = scipy.fft.idct(spectrum, axis=1, norm="ortho")
        return self._normalizer.unnormalize(normal)


def _train(texts: Sequence[str], alphabet: int, vocabulary: int):
    """A trained `tokenizers.Tokenizer` whose alphabet holds every coefficient between least and largest."""
    import tokenizers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=[chr(FIRST + i) for i in range(alphabet)],
        limit_alphabet=alphabet,
        min_frequency=2,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe
