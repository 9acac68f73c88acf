"""Files in the layout of UniVLA's latent action model, of any size, with random numbers, and the model in numpy."""

import numpy as np
from scipy.special import erf


def lam_state(
    seed: int, *, tower=16, depth=2, side=3, registers=4, dim=24, encoder=2, decoder=1, latent=6, codes=7, background=8,
    queries=4,
) -> dict[str, np.ndarray]:  # fmt: skip
    """{name: f32 array} without the prefix "lam."; `side` squared positions of DINOv2, `queries` tokens a group."""
    rng = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}

    def normal(name, *shape):
        state[name] = (rng.normal(size=shape) / max(shape[-1], 1) ** 0.5).astype(np.float32)

    def linear(name, inputs, outputs, bias=True):
        normal(f"{name}.weight", outputs, inputs)
        if bias:
            normal(f"{name}.bias", outputs)

    def norm(name, width):
        state[f"{name}.weight"] = (1 + rng.normal(size=width) / 10).astype(np.float32)
        normal(f"{name}.bias", width)

    dino = "dino_encoder."
    normal(f"{dino}cls_token", 1, 1, tower)
    normal(f"{dino}pos_embed", 1, side**2 + 1, tower)
    normal(f"{dino}mask_token", 1, tower)
    if registers:
        normal(f"{dino}register_tokens", 1, registers, tower)
    normal(f"{dino}patch_embed.proj.weight", tower, 3, 14, 14)
    normal(f"{dino}patch_embed.proj.bias", tower)
    for k in range(depth):
        block = f"{dino}blocks.{k}"
        norm(f"{block}.norm1", tower)
        linear(f"{block}.attn.qkv", tower, 3 * tower)
        linear(f"{block}.attn.proj", tower, tower)
        norm(f"{block}.norm2", tower)
        linear(f"{block}.mlp.fc1", tower, 4 * tower)
        linear(f"{block}.mlp.fc2", 4 * tower, tower)
        for number in (1, 2):
            normal(f"{block}.ls{number}.gamma", tower)
    norm(f"{dino}norm", tower)
    normal("action_latent", 1, 1, queries, tower)
    normal("action_latent_controllable", 1, 1, queries, tower)
    for stack, blocks, inputs, attentions in (("encoder", encoder, tower, ("spatial", "temporal")),
                                              ("decoder", decoder, dim, ("spatial",))):  # fmt: skip
        norm(f"{stack}.ffn.0", inputs)
        linear(f"{stack}.ffn.1", inputs, dim)
        norm(f"{stack}.ffn.2", dim)
        for k in range(blocks):
            block = f"{stack}.transformer_blocks.{k}"
            for attention in attentions:
                for part in "qkv":
                    linear(f"{block}.{attention}_attn.to_{part}", dim, dim, bias=False)
                linear(f"{block}.{attention}_attn.to_out.0", dim, dim)
            linear(f"{block}.ffn.0", dim, 4 * dim)
            linear(f"{block}.ffn.3", 4 * dim, dim)
            for number in range(len(attentions) + 1):
                norm(f"{block}.norm{number + 1}", dim)
    for name in ("to_codebook", "to_codebook_uncontrol"):
        linear(name, dim, latent)
    for name in ("action_up", "action_up_uncontrol"):
        linear(name, latent, dim)
    linear("patch_up", tower, dim)
    linear("decoder.out", dim, tower)
    normal("vq.codebook.weight", background, latent)
    normal("vq_action.codebook.weight", codes, latent)
    return state


def lam_deltas(state, features: np.ndarray, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [B, 2, P, C] -> what is quantised of the task and of the background, [B, N, Q] each, in float64."""
    p, count = _double(state), state["action_latent"].shape[2]
    rows, frames = features.shape[:2]
    queries = np.concatenate([p["action_latent_controllable"], p["action_latent"]], axis=2)
    x = np.concatenate([np.broadcast_to(queries, (rows, frames, *queries.shape[2:])), features], axis=2)
    z = _stack(p, "encoder", x, heads, temporal=True)[:, 1]
    return (_linear(p, "to_codebook", z[:, :count]),
            _linear(p, "to_codebook_uncontrol", z[:, count : 2 * count]))  # fmt: skip


def lam_prediction(state, features: np.ndarray, heads: int) -> np.ndarray:
    """Features [B, 2, P, C] -> those of the second frame as the decoder predicts them, [B, P, C]."""
    p = _double(state)
    task, background = lam_deltas(state, features, heads)
    nearest = lambda z, table: table[np.linalg.norm(z[..., None, :] - table, axis=-1).argmin(-1)]  # noqa: E731
    x = np.concatenate([_linear(p, "action_up", nearest(task, p["vq_action.codebook.weight"])),
                        _linear(p, "action_up_uncontrol", nearest(background, p["vq.codebook.weight"])),
                        _linear(p, "patch_up", features[:, 0])], axis=1)  # fmt: skip
    x = _stack(p, "decoder", x[:, None], heads, temporal=False)[:, 0]
    return _linear(p, "decoder.out", x)[:, -features.shape[2] :]


def _double(state):
    return {name: value.astype(np.float64) for name, value in state.items()}


def _linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


def _norm(p, name, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def _attention(p, name, x, heads, causal):
    """Over the second-to-last axis."""
    split = lambda y: y.reshape(*y.shape[:-1], heads, -1).swapaxes(-2, -3)  # noqa: E731
    q, k, v = (split(_linear(p, f"{name}.to_{part}", x)) for part in "qkv")
    logits = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        logits = np.where(np.tril(np.ones(logits.shape[-2:], bool)), logits, -np.inf)
    share = np.exp(logits - logits.max(-1, keepdims=True))
    out = (share / share.sum(-1, keepdims=True) @ v).swapaxes(-2, -3)
    return _linear(p, f"{name}.to_out.0", out.reshape(x.shape))


def _stack(p, stack, x, heads, temporal):
    x = _norm(p, f"{stack}.ffn.2", _linear(p, f"{stack}.ffn.1", _norm(p, f"{stack}.ffn.0", x)))
    places, width = np.arange(x.shape[2])[:, None], x.shape[-1]
    waves = places / 10000 ** (2 * np.arange(width // 2) / width)
    positions = np.zeros((x.shape[2], width))
    positions[:, 0::2], positions[:, 1::2] = np.sin(waves), np.cos(waves)
    x, k = x + positions, 0
    while f"{stack}.transformer_blocks.{k}.norm1.weight" in p:
        block, k = f"{stack}.transformer_blocks.{k}", k + 1
        x = x + _attention(p, f"{block}.spatial_attn", _norm(p, f"{block}.norm1", x), heads, False)
        if temporal:
            y = _norm(p, f"{block}.norm2", x).swapaxes(1, 2)
            x = x + _attention(p, f"{block}.temporal_attn", y, heads, True).swapaxes(1, 2)
        y = _linear(p, f"{block}.ffn.0", _norm(p, f"{block}.norm{3 if temporal else 2}", x))
        x = x + _linear(p, f"{block}.ffn.3", y * (1 + erf(y / 2**0.5)) / 2)
    return x
