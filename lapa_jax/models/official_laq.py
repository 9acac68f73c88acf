"""State dicts of the official LAQ (LAPA's `LatentActionQuantization`) as models of ours, name by name.

Sizes are read off the tensors. What the file cannot say is the image size, since the same weights fit several.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from lapa_jax.core import config, tree
from lapa_jax.core.errors import UserError
from lapa_jax.models.pretrained import expected_variables
from lapa_jax.nn.conv import ConvSpec, code_grid, downsample_specs, valid_lengths

STACKS = {
    "enc_spatial_transformer": "encoder/spatial",
    "enc_temporal_transformer": "encoder/temporal",
    "dec_spatial_transformer": "decoder/stack",
}
_HALVING = ConvSpec((3, 3), (2, 2), 1)
# The convolutions that the official code picks for each number of codes.
OFFICIAL_LAYERS = {
    1: (_HALVING, ConvSpec((4, 4), (1, 1), 0)),
    2: (_HALVING, ConvSpec((3, 4), (1, 1), 0)),
    4: (_HALVING, ConvSpec((3, 3), (1, 1), 0)),
    16: (_HALVING, _HALVING),
    64: (_HALVING,),
    256: (_HALVING,),
}
Array = np.ndarray
Entry = tuple[str, Callable[[Array], Array]]


def convert(state: Mapping[str, Array], image_size: int) -> tuple[dict, dict, list[str]]:
    """Converts a state dict.

    Args:
      state: the official names (see `unwrap`) with float32 arrays.
      image_size: side of the square frames in pixels; 256 for the released files.

    Returns:
      The model spec, its variables, and a line for each kind of entry that was left out.

    Raises:
      UserError: missing or extra names (all are listed), shapes that do not fit together, buffers that should be zero
        and are not, or an image size that the convolutions of the file do not fit.
    """
    depths = {stack: _depth(state, stack) for stack in STACKS}
    single, dropped = _entries(state, depths)
    _check_names(state, single, dropped)
    for name in dropped:
        # The official layer norm keeps its bias as a buffer of zeros. Any other value would be lost without notice.
        if np.any(state[name]) and name.endswith("beta"):
            raise UserError(f"'{name}' is not zero; the official layer norm has no learned bias, so this is no "
                            "official LAQ file")
    spec = _spec(state, depths, image_size)
    params: dict[str, list[Array] | Array] = {}
    for name, (path, transform) in single.items():
        value = transform(np.asarray(state[name], np.float32))
        # Our stacks are scanned: the layers' tensors are stacked on a leading axis, in the order in which they come.
        if "/layers/" in path:
            params.setdefault(path, []).append(value)
        else:
            params[path] = value
    params = {path: _stack(path, value) if isinstance(value, list) else value for path, value in params.items()}
    variables = {"params": tree.unflatten(_split_attention(params))}
    model = config.build("lapa_jax.models", spec)
    # The file has no usage counts of the codebook: they start at zero.
    expected = expected_variables(model)
    variables["codebook"] = {k: _zeros(v) for k, v in expected["codebook"].items()}
    if wrong := tree.diff(expected, variables):
        raise UserError(f"the tensors do not form an official LAQ: {wrong}")
    # Every field is written down, so that a later change of a default does not change what the file means.
    spec |= {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in ("name", "parent")}
    return spec, variables, _say_dropped(dropped)


def unwrap(state: Mapping) -> tuple[dict, list[str]]:
    """Finds the plain state dict in what training scripts save: `{"model": ...}`, averaged copies, "module." prefixes.

    Returns:
      The entries under their plain names, and a line for each step that was needed.
    """
    notes = []
    if "model" in state and isinstance(state["model"], Mapping):
        others = sorted(map(str, set(state) - {"model"}))
        notes.append(f"taken from the entry 'model'; left out: {', '.join(others) or 'nothing'}")
        state = state["model"]
    for prefix in ("ema_model.", "online_model."):
        if any(name.startswith(prefix) for name in state):
            rest = [name for name in state if not name.startswith(prefix)]
            notes.append(f"taken from the entries '{prefix}*'; left out: {len(rest)} others")
            state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            break
    if state and all(name.startswith("module.") for name in state):
        notes.append("prefix 'module.' removed")
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state), notes


def _entries(state, depths) -> tuple[dict[str, Entry], list[str]]:
    """Official name -> (our path, transform), layer by layer in order; and the names that hold nothing we need."""
    entries: dict[str, Entry] = {"vq.codebooks": ("quantizer/codebook", np.asarray)}
    for official, ours in (("spatial_rel_pos_bias.net.0.0", "encoder/position_bias/hidden_0"),
                           ("spatial_rel_pos_bias.net.1.0", "encoder/position_bias/hidden_1"),
                           ("spatial_rel_pos_bias.net.2", "encoder/position_bias/out"),
                           ("to_patch_emb_first_frame.2", "encoder/patch_embedding/project"),
                           ("vq.project_in", "encoder/project"),
                           ("vq.project_out", "decoder/project"),
                           ("to_pixels_first_frame.0", "decoder/to_pixels")):  # fmt: skip
        entries |= {f"{official}.weight": (f"{ours}/kernel", np.transpose), f"{official}.bias": (f"{ours}/bias", _same)}
    for official, ours in (("1", "norm_in"), ("3", "norm_out")):
        entries |= _norm(f"to_patch_emb_first_frame.{official}", f"encoder/patch_embedding/{ours}")
    # Convolutions are entries 0 and 2 of the official Sequential; entry 1 is the activation. Some code lengths need one
    # only.
    for index in (0, 2) if "vq.cnn_encoder.2.weight" in state or "vq.cnn_encoder.2.bias" in state else (0,):
        ours = f"encoder/downsample/conv_{index // 2}"
        entries[f"vq.cnn_encoder.{index}.weight"] = (f"{ours}/kernel", lambda x: x.transpose(2, 3, 1, 0))
        entries[f"vq.cnn_encoder.{index}.bias"] = (f"{ours}/bias", _same)
    dropped: list[str] = []
    for stack, ours in STACKS.items():
        for layer in range(depths[stack]):
            _block(entries, dropped, f"{stack}.layers.{layer}", f"{ours}/layers", cross=stack.startswith("dec"))
        entries[f"{stack}.norm_out.gamma"] = (f"{ours}/norm_out/scale", _same)
        dropped.append(f"{stack}.norm_out.beta")
    return entries, dropped


def _block(entries: dict[str, Entry], dropped: list[str], official: str, ours: str, *, cross: bool) -> None:
    entries[f"{official}.0.dsconv.weight"] = (f"{ours}/neighbours/kernel", lambda x: x.transpose(2, 3, 4, 1, 0))
    entries[f"{official}.0.dsconv.bias"] = (f"{ours}/neighbours/bias", _same)
    for index, name in ((1, "attention"), (2, "cross"))[: 1 + cross]:
        for scale, to in (("q_scale", "query_scale"), ("k_scale", "key_scale")):
            entries[f"{official}.{index}.{scale}"] = (f"{ours}/{name}/{to}", _same)
        for linear, to in (("to_q", "query"), ("to_kv", "key_value"), ("to_out", "out")):
            entries[f"{official}.{index}.{linear}.weight"] = (f"{ours}/{name}/{to}/kernel", np.transpose)
        entries[f"{official}.{index}.norm.gamma"] = (f"{ours}/{name}_norm/scale", _same)
        dropped += [f"{official}.{index}.norm.beta", f"{official}.{index}.context_norm.beta"]
    # Self-attention of the official code carries an unused context norm and null keys of size 0.
    dropped += [f"{official}.1.null_kv", f"{official}.1.context_norm.gamma"]
    if cross:
        entries[f"{official}.2.context_norm.gamma"] = (f"{ours}/context_norm/scale", _same)
        entries[f"{official}.2.null_kv"] = (f"{ours}/cross/null_key_value", lambda x: x.transpose(1, 0, 2))
    entries |= _norm(f"{official}.3.0", f"{ours}/feedforward_norm")
    # Entries 2 and 3 of the official feed-forward are the activation and dropout, which have no tensors.
    entries[f"{official}.3.1.weight"] = (f"{ours}/feedforward/up/kernel", np.transpose)
    entries[f"{official}.3.4.weight"] = (f"{ours}/feedforward/down/kernel", np.transpose)


def _norm(official: str, ours: str) -> dict[str, Entry]:
    return {f"{official}.weight": (f"{ours}/scale", _same), f"{official}.bias": (f"{ours}/bias", _same)}


def _stack(path: str, layers: list[Array]) -> Array:
    if len({layer.shape for layer in layers}) > 1:
        shapes = ", ".join(str(layer.shape) for layer in layers)
        raise UserError(f"the tensors do not form an official LAQ: the layers of {path} have shapes {shapes}")
    return np.stack(layers)


def _same(x: Array) -> Array:
    return x


def _split_attention(params: Mapping[str, Array]) -> dict[str, Array]:
    """Keys and values lie in one tensor in official files: side by side in the projection, alternating in the nulls."""
    split = {}
    for path, value in params.items():
        parent, _, last = path.rpartition("/")
        if last == "null_key_value":
            split |= {f"{parent}/null_key": value[:, 0::2], f"{parent}/null_value": value[:, 1::2]}
        elif parent.endswith("/key_value"):
            base = parent.removesuffix("key_value")
            split[f"{base}key/kernel"], split[f"{base}value/kernel"] = np.split(value, 2, axis=-1)
        else:
            split[path] = value
    return split


def _depth(state: Mapping[str, Array], stack: str) -> int:
    indices = [int(m[1]) for name in state if (m := re.match(rf"{stack}\.layers\.(\d+)\.", name))]
    return max(indices, default=0) + 1


def _check_names(state, entries, dropped) -> None:
    expected = {*entries, *dropped}
    missing, extra = sorted(expected - set(state)), sorted(set(state) - expected)
    if missing or extra:
        raise UserError("this is no official LAQ state dict; "
                        f"missing ({len(missing)}): {', '.join(missing) or 'none'}; "
                        f"extra ({len(extra)}): {', '.join(extra) or 'none'}")


def _spec(state: Mapping[str, Array], depths: Mapping[str, int], image_size: int) -> dict:
    """The model spec that the shapes amount to."""
    dim, patch_features = state["to_patch_emb_first_frame.2.weight"].shape
    patch = math.isqrt(patch_features // 3)
    if 3 * patch**2 != patch_features:
        raise UserError(f"to_patch_emb_first_frame.2.weight takes {patch_features} features, which are no square "
                        "patches of 3 channels")
    codebook_size, quant_dim = state["vq.codebooks"].shape
    kernels = [state[f"vq.cnn_encoder.{i}.weight"].shape[2:] for i in (0, 2) if f"vq.cnn_encoder.{i}.weight" in state]
    return {
        "name": "tokenizers.laq", "image_size": image_size, "patch_size": patch, "dim": dim, "quant_dim": quant_dim,
        "codebook_size": codebook_size, "code_seq_len": _code_length(kernels, image_size, patch),
        "spatial_depth": depths["enc_spatial_transformer"], "temporal_depth": depths["enc_temporal_transformer"],
        "decoder_depth": depths["dec_spatial_transformer"],
        "heads": state["spatial_rel_pos_bias.net.2.weight"].shape[0],
        "dim_head": state["enc_spatial_transformer.layers.0.1.q_scale"].shape[0], "layout": "official",
    }  # fmt: skip


def _code_length(kernels, image_size: int, patch: int) -> int:
    """The number of codes for which the official code has these kernels and this grid gives that many codes."""
    # Several code lengths share the same kernels, so that the grid has to decide between them.
    fits = lambda side: [  # noqa: E731
        length
        for length, layers in OFFICIAL_LAYERS.items()
        if [spec.kernel for spec in layers] == [tuple(k) for k in kernels]
        and length in valid_lengths((side, side))
        and downsample_specs((side, side), code_grid((side, side), length)) == layers
    ]
    if image_size % patch == 0 and (lengths := fits(image_size // patch)):
        return lengths[0]
    sizes = [f"{side * patch} ({fits(side)[0]} codes)" for side in range(1, 33) if fits(side)]
    raise UserError(f"image_size {image_size} does not fit the convolutions of the file (patches of {patch} pixels); "
                    f"sizes that do: {', '.join(sizes) or 'none'}")


def _say_dropped(dropped: list[str]) -> list[str]:
    kinds = {"beta": "zero layer norm biases", "null_kv": "null keys of size 0", "gamma": "unused context norms"}
    counts = {text: sum(name.endswith(ending) for name in dropped) for ending, text in kinds.items()}
    return [f"left out: {count} {text}" for text, count in counts.items() if count]


def _zeros(shapes):
    return {key: np.zeros(value.shape, value.dtype) for key, value in shapes.items()}
