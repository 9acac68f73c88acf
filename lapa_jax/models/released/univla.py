"""UniVLA's released files: the latent action model of its second stage, a checkpoint of Lightning.

How many heads a width is, and how large images are, stands in no tensor: these are arguments, with the released model's
values, unless the checkpoint keeps its hyper-parameters.
"""

import math
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json_object
from lapa_jax.core.torch_file import TorchFile
from lapa_jax.models.released import timm
from lapa_jax.models.released.base import Place, Release, Tensors, patches_kernel, prefixed, same, without_batch
from lapa_jax.models.released.tensors import Renamed, SafetensorsFile, TorchTensors

KIND = "latent action model of UniVLA"
DIM_HEAD = 64
LINEAR = {"to_codebook": "to_task", "to_codebook_uncontrol": "to_background", "patch_up": "from_patches",
          "action_up": "from_task", "action_up_uncontrol": "from_background", "decoder.out": "to_features"}  # fmt: skip
ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "out"}


def read_lam(
    path: pathlib.Path, *, data: Mapping, heads: int | None = None, tower_heads: int | None = None,
    dtype: str = "float32",
) -> Release:  # fmt: skip
    """Reads what a checkpoint holds, without its numbers.

    Args:
      path: `lam-stage-2.ckpt`, or a safetensors file with the same names.
      heads: of the space-time blocks; None for what the checkpoint keeps, or heads of 64. tower_heads: of DINOv2; None
        for heads of 64. Both and the size of frames may stand in `sizes.json` beside it, {"heads", "dheads", "img"}.
      data: `config.data` of the run, which says the size of frames, 224 where it is None, and the gap of a pair.
      dtype: of the computation.

    Raises:
      UserError: a file that is missing, damaged or of something else, such as the model of the first stage.
    """
    tensors, hyper = _open(path)
    shapes = tensors.shapes
    if any(name.startswith(("text_encoder.", "lang_proj.")) for name in shapes):
        raise UserError(f"{path} is the {KIND} of the first stage, without codes of the task; give lam-stage-2.ckpt")
    needed = ("dino_encoder.patch_embed.proj.weight", "dino_encoder.pos_embed", "dino_encoder.blocks.0.mlp.fc1.bias",
              "encoder.ffn.1.weight", "action_latent_controllable", "to_codebook.weight", "vq.codebook.weight",
              "vq_action.codebook.weight")  # fmt: skip
    axes = (4, 3, 1, 2, 4, 2, 2, 2)
    if missing := [name for name, count in zip(needed, axes) if len(shapes.get(name, ())) != count]:
        raise UserError(f"{path} is no {KIND}; missing or of a wrong shape ({len(missing)}): {', '.join(missing)}; it "
                        f"holds {', '.join(sorted(shapes)[:5])}, ...")  # fmt: skip
    sizes = path.with_name("sizes.json")
    sizes = read_json_object(sizes) if sizes.is_file() else {}
    data = {**data, "image_size": data["image_size"] or sizes.get("img", 224)}
    heads, tower_heads = heads or sizes.get("heads"), tower_heads or sizes.get("dheads")
    tower, places = _tower(shapes, tower_heads)
    # the one bias that is as wide as the blocks: matrices might be transposed
    dim = shapes["encoder.ffn.1.bias"][0] if "encoder.ffn.1.bias" in shapes else shapes["encoder.ffn.1.weight"][0]
    kept = hyper.get("lam_num_heads")
    heads = heads or (kept if isinstance(kept, int) else None) or _heads(dim, "--heads", "the blocks")
    for option, width, count in (("heads", dim, heads), ("tower_heads", tower["dim"], tower["heads"])):
        if width % count:
            raise UserError(f"--{option} {count} does not divide a width of {width}")
    spec = {
        "name": "tokenizers.univla", "image_size": data["image_size"], "tower": tower, "dim": dim, "heads": heads,
        "encoder_depth": _depth(shapes, "encoder.transformer_blocks"),
        "decoder_depth": _depth(shapes, "decoder.transformer_blocks"),
        "quant_dim": _width(shapes, "to_codebook.bias", shapes["to_codebook.weight"][0]),
        "code_seq_len": shapes["action_latent_controllable"][2],
        "codebook_size": shapes["vq_action.codebook.weight"][0], "background_size": shapes["vq.codebook.weight"][0],
        "dtype": dtype,
    }  # fmt: skip
    spec["tower"]["dtype"] = dtype
    config = {"name": "univla_lam", "model": spec, "data": data}
    return Release(KIND, path, config, tensors, places | _blocks(spec), r"dino_encoder\.mask_token")


def _open(path: pathlib.Path) -> tuple[Tensors, Mapping]:
    """The tensors, by the names within the model; and the hyper-parameters that the checkpoint keeps."""
    if path.suffix == ".safetensors":
        tensors, hyper = SafetensorsFile(path), {}
    else:
        file = TorchFile(path)
        content = file.content if isinstance(file.content, Mapping) else {}
        state = content.get("state_dict", content)
        tensors = TorchTensors(file, file.tensors(state if isinstance(state, Mapping) else {}))
        hyper = content.get("hyper_parameters")
        hyper = hyper if isinstance(hyper, Mapping) else {}
    if not tensors.shapes:
        raise UserError(f"{path} holds no tensors under the names of a state dict")
    names = {re.sub(r"^(module\.)?(lam\.)?", "", name): (tensors, name) for name in tensors.shapes}
    return Renamed(names), hyper


def _tower(shapes: Mapping[str, tuple[int, ...]], heads: int | None) -> tuple[dict, dict]:
    """The fields of `vision.dinov2`, and the places of a tower with the names of Meta's own code."""
    name = "dino_encoder."
    dim, _, patch, _ = shapes[f"{name}patch_embed.proj.weight"]
    depth, rows = _depth(shapes, f"{name}blocks"), shapes[f"{name}pos_embed"][1] - 1
    if math.isqrt(rows) ** 2 != rows:
        raise UserError(f"{name}pos_embed has {rows} positions besides that of the class token: no square grid")
    registers = shapes.get(f"{name}register_tokens", (1, 0))[1]
    spec = {"name": "vision.dinov2", "image_size": math.isqrt(rows) * patch, "patch": patch, "dim": dim, "depth": depth,
            "heads": heads or _heads(dim, "--tower_heads", "DINOv2"),
            "hidden": shapes[f"{name}blocks.0.mlp.fc1.bias"][0], "eps": 1e-6, "registers": registers,
            "layer": -1}  # fmt: skip
    places = {"cls_token": [Place("class_token", without_batch)], "pos_embed": [Place("positions", without_batch)],
              "patch_embed.proj.weight": [Place("embed/kernel", patches_kernel)],
              "patch_embed.proj.bias": [Place("embed/bias", same)],
              "norm.weight": [Place("norm_out/scale", same)], "norm.bias": [Place("norm_out/bias", same)]}  # fmt: skip
    if registers:
        places["register_tokens"] = [Place("registers", without_batch)]
    for layer in range(depth):
        places |= timm.block(f"blocks.{layer}", layer, "gamma")
    return spec, prefixed(places, name, "tower/")


def _blocks(spec: Mapping) -> dict[str, list[Place]]:
    """The places of all but the tower."""
    places = {"action_latent": [Place("background_queries", _of_a_token)],
              "action_latent_controllable": [Place("task_queries", _of_a_token)],
              "vq.codebook.weight": [Place("background/codebook", _codebook)],
              "vq_action.codebook.weight": [Place("quantizer/codebook", _codebook)]}  # fmt: skip
    for theirs, ours in LINEAR.items():
        places |= _linear(theirs, ours)
    for stack, depth, attentions in (("encoder", spec["encoder_depth"], ("spatial", "temporal")),
                                     ("decoder", spec["decoder_depth"], ("spatial",))):  # fmt: skip
        places |= _norm(f"{stack}.ffn.0", f"{stack}/norm_in") | _norm(f"{stack}.ffn.2", f"{stack}/norm_embed")
        places |= _linear(f"{stack}.ffn.1", f"{stack}/embed")
        for layer in range(depth):
            theirs, ours = f"{stack}.transformer_blocks.{layer}", f"{stack}/layers"
            places |= _linear(f"{theirs}.ffn.0", f"{ours}/up", layer)
            places |= _linear(f"{theirs}.ffn.3", f"{ours}/down", layer)
            norms = [f"{name}_norm" for name in (*attentions, "feedforward")]
            for number, norm in enumerate(norms, start=1):
                places |= _norm(f"{theirs}.norm{number}", f"{ours}/{norm}", layer)
            for attention in attentions:
                for part, name in ATTENTION.items():
                    linear = _linear(f"{theirs}.{attention}_attn.{part}", f"{ours}/{attention}/{name}", layer)
                    places |= {n: place for n, place in linear.items() if part == "to_out.0" or not n.endswith(".bias")}
    return places


def _linear(theirs: str, ours: str, layer: int | None = None) -> dict[str, list[Place]]:
    return {f"{theirs}.weight": [Place(f"{ours}/kernel", np.transpose, layer)],
            f"{theirs}.bias": [Place(f"{ours}/bias", same, layer)]}  # fmt: skip


def _norm(theirs: str, ours: str, layer: int | None = None) -> dict[str, list[Place]]:
    return {f"{theirs}.weight": [Place(f"{ours}/scale", same, layer)],
            f"{theirs}.bias": [Place(f"{ours}/bias", same, layer)]}  # fmt: skip


def _of_a_token(x: np.ndarray) -> np.ndarray:
    """[1, 1, N, D] -> [N, D]."""
    return x.reshape(x.shape[2:])


def _codebook(x: np.ndarray) -> np.ndarray:
    """One codebook that all positions share: [K, Q] -> [1, K, Q]."""
    return x[None]


def _depth(shapes: Mapping[str, tuple[int, ...]], stack: str) -> int:
    numbers = {int(m[1]) for name in shapes if (m := re.match(rf"{re.escape(stack)}\.(\d+)\.", name))}
    return max(numbers, default=0) + 1


def _width(shapes: Mapping[str, tuple[int, ...]], bias: str, otherwise: int) -> int:
    return shapes[bias][0] if len(shapes.get(bias, ())) == 1 else otherwise


def _heads(dim: int, option: str, what: str) -> int:
    if dim % DIM_HEAD:
        raise UserError(f"{what} are {dim} wide, which makes no heads of {DIM_HEAD}; say how many with {option}")
    return dim // DIM_HEAD
