"""Files in the layouts of LAPA-7B and of UniVLA's latent action model, of any size, with random numbers.

Written by flax and msgpack, by pickle, and by `torch_writer`; what the models compute is written out in numpy, from the
papers and the notes of the official code, as a second opinion besides the goldens.
"""

import pathlib
import pickle
from collections.abc import Mapping

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np

LAYERS = "transformer/h/scan_decoder"


def lapa_params(
    seed: int, *, vocab=300, vision=280, codes=6, dim=16, depth=3, hidden=24, actions: int | None = None,
    dtype=ml_dtypes.bfloat16,
) -> dict[str, np.ndarray]:  # fmt: skip
    """{name: array} of a decoder."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: (rng.normal(size=shape) / shape[-2] ** 0.5).astype(dtype)  # noqa: E731
    ones = lambda *shape: (1 + rng.normal(size=shape) / 10).astype(dtype)  # noqa: E731
    params = {
        "transformer/wte/embedding": normal(vocab, dim), "transformer/vte/embedding": normal(vision, dim),
        "transformer/dte/embedding": normal(codes, dim), "transformer/ln_f/kernel": ones(dim),
        "lm_head/kernel": normal(dim, vocab), "vision_head/kernel": normal(dim, vision),
        "delta_head/kernel": normal(dim, codes), f"{LAYERS}/attention_norm/kernel": ones(depth, dim),
        f"{LAYERS}/ffn_norm/kernel": ones(depth, dim),
        **{f"{LAYERS}/attention/w{name}/kernel": normal(depth, dim, dim) for name in "qkvo"},
        **{f"{LAYERS}/feed_forward/w{number}/kernel": normal(depth, *shape)
           for number, shape in ((1, (dim, hidden)), (3, (dim, hidden)), (2, (hidden, dim)))},
    }  # fmt: skip
    if actions is not None:
        params |= {"transformer/ate/embedding": normal(actions, dim), "action_head/kernel": normal(dim, actions)}
    return params


def write_params(path: pathlib.Path, params: Mapping[str, np.ndarray], prefix: str = "") -> pathlib.Path:
    """As tux's StreamingCheckpointer writes them."""
    packer = msgpack.Packer()
    with open(path, "wb") as file:
        for name, array in params.items():
            file.write(packer.pack((tuple(f"{prefix}{name}".split("/")), flax.serialization.to_bytes(array))))
    return path


def vqgan_arrays(seed: int, widths=(32, 64), blocks=1, latent=6, codebook=250, width=5) -> dict:
    """Nested arrays of a VQGAN."""
    rng = np.random.default_rng(seed)

    def conv(inputs, outputs, side=3):
        kernel = rng.normal(size=(side, side, inputs, outputs)) / (side * side * inputs) ** 0.5
        return {"kernel": kernel.astype(np.float32), "bias": rng.normal(size=outputs).astype(np.float32) / 10}

    def norm(channels):
        return {"scale": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)}

    def resnet(inputs, outputs):
        block = {"GroupNorm_0": norm(inputs), "Conv_0": conv(inputs, outputs), "GroupNorm_1": norm(outputs),
                 "Conv_1": conv(outputs, outputs)}  # fmt: skip
        return block | ({} if inputs == outputs else {"Conv_2": conv(inputs, outputs, 1)})

    def level(inputs, outputs, count, sample):
        block = {f"ResnetBlock_{k}": resnet(outputs if k else inputs, outputs) for k in range(count)}
        return block | ({sample: {"Conv_0": conv(outputs, outputs)}} if sample else {})

    last, mid = widths[-1], {"MidBlock_0": {f"ResnetBlock_{k}": resnet(widths[-1], widths[-1]) for k in range(2)}}
    down = {f"DownsamplingBlock_{k}": level(widths[max(k - 1, 0)], w, blocks, "Downsample_0" if w is not None
            and k < len(widths) - 1 else None) for k, w in enumerate(widths)}  # fmt: skip
    back = widths[::-1]
    up = {f"UpsamplingBlock_{k}": level(back[max(k - 1, 0)], w, blocks + 1,
          "Upsample_0" if k < len(back) - 1 else None) for k, w in enumerate(back)}  # fmt: skip
    ends = lambda first, out: {"Conv_0": first, "GroupNorm_0": norm(out[0]), "Conv_1": conv(*out)}  # noqa: E731
    return {
        "encoder": {**ends(conv(3, widths[0]), (last, latent)), **down, **mid},
        "decoder": {**ends(conv(latent, last), (widths[0], 3)), **up, **mid},
        "quant_conv": conv(latent, width, 1), "post_quant_conv": conv(width, latent, 1),
        "quantize": {"embeddings": rng.normal(size=(codebook, width)).astype(np.float32)},
    }  # fmt: skip


def write_vqgan(path: pathlib.Path, arrays: Mapping) -> pathlib.Path:
    """As the official code keeps them."""
    path.write_bytes(pickle.dumps(arrays))
    return path


def lapa_states(
    params: Mapping[str, np.ndarray], embeddings: np.ndarray, real: np.ndarray, heads: int, theta: float, eps: float
) -> np.ndarray:  # fmt: skip
    """The decoder in float64: embeddings [S, D] and real bool [S] -> states behind the last norm [S, D].

    Neighbouring features turn together, as complex numbers; padding counts for nothing.
    """
    p = {name: np.asarray(array, np.float64) for name, array in params.items()}
    x, length, width = embeddings.astype(np.float64), len(embeddings), embeddings.shape[1] // heads
    place = np.maximum(np.cumsum(real) - 1, 0)
    turn = np.exp(1j * place[:, None] * theta ** (-2.0 * np.arange(width // 2) / width))[:, None]
    seen = np.tril(np.ones((length, length), bool)) & real[None] | np.eye(length, dtype=bool)

    def normed(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale

    def turned(x):
        pairs = x.reshape(length, heads, width // 2, 2)
        z = (pairs[..., 0] + 1j * pairs[..., 1]) * turn
        return np.stack([z.real, z.imag], -1).reshape(length, heads, width)

    for k in range(len(p[f"{LAYERS}/ffn_norm/kernel"])):
        y = normed(x, p[f"{LAYERS}/attention_norm/kernel"][k])
        q, key, v = ((y @ p[f"{LAYERS}/attention/w{n}/kernel"][k]).reshape(length, heads, width) for n in "qkv")
        logits = np.einsum("qhd,khd->hqk", turned(q), turned(key)) / width**0.5
        logits = np.where(seen, logits, -np.inf)
        share = np.exp(logits - logits.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        out = np.einsum("hqk,khd->qhd", share, v).reshape(length, -1)
        x = x + out @ p[f"{LAYERS}/attention/wo/kernel"][k]
        y = normed(x, p[f"{LAYERS}/ffn_norm/kernel"][k])
        gate, up = (y @ p[f"{LAYERS}/feed_forward/w{n}/kernel"][k] for n in (1, 3))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ p[f"{LAYERS}/feed_forward/w2/kernel"][k]
    return normed(x, p["transformer/ln_f/kernel"])


def as_jax(tree):
    """Nested arrays on the device."""
    return {name: as_jax(value) if isinstance(value, Mapping) else jnp.asarray(value) for name, value in tree.items()}
