"""OpenVLA's forward pass written out on the tensors of its Hugging Face folder, in plain jax.numpy.

From the description of the architecture, with nothing of the package: a second way to the same numbers, whose gradients
are those of the checkpoint's own tensors.
"""

import jax
import jax.numpy as jnp

VISION, TEXT = "vision_backbone.", "language_model.model."


def linear(t, name, x):
    y = x @ t[f"{name}.weight"].T
    return y + t[f"{name}.bias"] if f"{name}.bias" in t else y


def layer_norm(t, name, x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * t[f"{name}.weight"] + t[f"{name}.bias"]


def rms_norm(t, name, x, eps):
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + eps) * t[f"{name}.weight"]


def attend(q, k, v, causal):
    """[L, heads, d] each -> [L, heads * d]."""
    logits = jnp.einsum("lhd,shd->hls", q, k) / q.shape[-1] ** 0.5
    if causal:
        logits = jnp.where(jnp.tril(jnp.ones(logits.shape[1:], bool)), logits, -jnp.inf)
    return jnp.einsum("hls,shd->lhd", jax.nn.softmax(logits), v).reshape(len(q), -1)


def tower(t, name, pixels, depth, heads):
    """Patch features [L, D] of an image [3, H, W] behind the second-to-last block."""
    t = {key.removeprefix(f"{VISION}{name}."): value for key, value in t.items() if key.startswith(f"{VISION}{name}.")}
    x = jax.lax.conv(pixels[None], t["patch_embed.proj.weight"], (14, 14), "VALID")[0]
    x = x.reshape(len(x), -1).T + t["patch_embed.proj.bias"] + t["pos_embed"][0]
    first = jnp.concatenate([jnp.zeros((0, x.shape[1])), *(t[n][0] for n in ("cls_token", "reg_token") if n in t)])
    x = jnp.concatenate([first, x])
    for i in range(depth - 1):
        block = f"blocks.{i}"
        scale = lambda n, y, block=block: y * t.get(f"{block}.{n}.scale_factor", 1.0)  # noqa: E731
        q, k, v = linear(t, f"{block}.attn.qkv", layer_norm(t, f"{block}.norm1", x)).reshape(len(x), 3, heads, -1
                                                                                             ).swapaxes(0, 1)
        x = x + scale("ls1", linear(t, f"{block}.attn.proj", attend(q, k, v, causal=False)))
        y = jax.nn.gelu(linear(t, f"{block}.mlp.fc1", layer_norm(t, f"{block}.norm2", x)), approximate=False)
        x = x + scale("ls2", linear(t, f"{block}.mlp.fc2", y))
    return x[len(first) :]


def patches(t, pixels, depths, heads=(16, 16)):
    """Tokens [L, D] of an image [6, H, W], DINOv2's channels, then SigLIP's; or of [3, H, W], of one tower."""
    towers = zip(("featurizer", "fused_featurizer"), (pixels[:3], pixels[3:]), depths, heads)
    x = jnp.concatenate([tower(t, *each) for each in towers], axis=1)
    names = ("fc1", "fc2", "fc3")[: 1 + len(depths)]
    for name in names[:-1]:
        x = jax.nn.gelu(linear(t, f"projector.{name}", x), approximate=False)
    return linear(t, f"projector.{names[-1]}", x)


def turn(x, theta):
    """Rotary positions 0, 1, ... of [L, heads, d]: feature i is turned together with feature i + d / 2."""
    half = x.shape[-1] // 2
    angle = jnp.arange(len(x))[:, None] / theta ** (jnp.arange(half) * 2 / x.shape[-1])
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    return jnp.concatenate([x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin], -1)


def llama(t, x, layers, heads=4, eps=1e-6, theta=10000):
    """Embeddings [L, D] -> hidden states behind the final norm. Neighbouring heads may share keys and values."""
    for i in range(layers):
        block = f"{TEXT}layers.{i}"
        y = rms_norm(t, f"{block}.input_layernorm", x, eps)
        q = linear(t, f"{block}.self_attn.q_proj", y).reshape(len(x), heads, -1)
        k, v = (linear(t, f"{block}.self_attn.{n}_proj", y).reshape(len(x), -1, q.shape[-1]) for n in "kv")
        k, v = (jnp.repeat(each, heads // each.shape[1], axis=1) for each in (k, v))
        x = x + linear(t, f"{block}.self_attn.o_proj", attend(turn(q, theta), turn(k, theta), v, causal=True))
        y = rms_norm(t, f"{block}.post_attention_layernorm", x, eps)
        gate = jax.nn.silu(linear(t, f"{block}.mlp.gate_proj", y))
        x = x + linear(t, f"{block}.mlp.down_proj", gate * linear(t, f"{block}.mlp.up_proj", y))
    return rms_norm(t, f"{TEXT}norm", x, eps)


def embed(t, ids, pixels, depths, heads=(16, 16)):
    """[bos][image][rest of the prompt] as embeddings [L, D]."""
    words = t[f"{TEXT}embed_tokens.weight"][ids]
    return jnp.concatenate([words[:1], patches(t, pixels, depths, heads), words[1:]])
