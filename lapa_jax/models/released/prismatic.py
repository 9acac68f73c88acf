"""Prismatic's native layout, `config.json` and `checkpoints/*.pt`: vision-language models, and OpenVLA's trainings.

A `.pt` file holds the parts that were trained. Towers that were frozen come from timm's files on the hub
(timm/vit_large_patch14_reg4_dinov2.lvd142m, timm/ViT-SO400M-14-SigLIP and others). How large Llama's heads are, which
towers there are and how large their images are follows from names in `config.json`.
"""

import pathlib
import re
from collections.abc import Mapping

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.files import read_json_object
from lapa_jax.core.torch_file import TorchFile
from lapa_jax.models.released import prismatic_parts, statistics, timm
from lapa_jax.models.released.base import Release, Tensors
from lapa_jax.models.released.prismatic_parts import Chosen
from lapa_jax.models.released.tensors import Renamed, SafetensorsFile, TorchTensors

DINOV2, SO400M = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip"
VISION = {
    "dinosiglip-vit-so-224px": ((DINOV2, f"{SO400M}_224"), 224),
    "dinosiglip-vit-so-384px": ((DINOV2, f"{SO400M}_384"), 384),
    "siglip-vit-so400m": ((f"{SO400M}_224",), 224), "siglip-vit-so400m-384px": ((f"{SO400M}_384",), 384),
    **{f"siglip-vit-b16-{side}px": ((f"vit_base_patch16_siglip_{side}",), side) for side in (224, 256, 384)},
    "dinov2-vit-l": ((DINOV2,), 224),
}  # fmt: skip
"""{vision_backbone_id: (timm's names, side of the images)}."""

LLMS = {"llama2": "meta-llama/Llama-2-7b-hf", "vicuna": "lmsys/vicuna-7b-v1.5", "mistral": "mistralai/Mistral-7B-v0.1"}
"""{beginning of llm_backbone_id: where its tokenizer lies on the hub}. Their heads have 128 features."""
HEAD, EPS = 128, 1e-5

FUSED, ONE = "no-align+fused-gelu-mlp", "no-align+gelu-mlp"
BASES = {
    "prism-dinosiglip-224px": ("dinosiglip-vit-so-224px", FUSED, "resize-naive", "llama2-7b-pure"),
    "prism-dinosiglip": ("dinosiglip-vit-so-384px", FUSED, "resize-naive", "llama2-7b-pure"),
    "prism-siglip": ("siglip-vit-so400m-384px", ONE, "resize-naive", "llama2-7b-pure"),
    "dinosiglip-224px-resize-naive": ("dinosiglip-vit-so-224px", FUSED, "resize-naive", "vicuna-v15-7b"),
    "siglip-224px": ("siglip-vit-so400m", ONE, "letterbox", "vicuna-v15-7b"),
    "dinov2-224px": ("dinov2-vit-l", ONE, "letterbox", "vicuna-v15-7b"),
}  # fmt: skip
"""{base_vlm of OpenVLA's trainings without its size: what its own config would say}."""

PARTS = {"dino_featurizer": "featurizer", "siglip_featurizer": "fused_featurizer", "featurizer": "featurizer"}
"""{towers within "vision_backbone": the names of Hugging Face's port}."""
OPEN_CLIP, OTHERS = "visual.trunk.", r"open_clip\.(text\..*|visual\..*|logit_scale|logit_bias)"


def read(
    source: pathlib.Path, dinov2: pathlib.Path | None = None, siglip: pathlib.Path | None = None,
    chosen: Chosen | None = None,
) -> Release:  # fmt: skip
    """Reads what a run folder, or one of its `.pt` files, holds, without the numbers.

    Args:
      source: the folder, whose `checkpoints/latest-checkpoint.pt` is taken, or the file.
      dinov2, siglip: timm's files of towers that the checkpoint does not hold; by default files in the run folder
        whose names begin with timm's names.
      chosen: by the user; the tokenizer is by default that of the language model on the hub.

    `sizes.json` beside `config.json`, {"llm": config of Llama, "image_size", "timm_heads"}, says what is not as the
    names in `config.json` have it.

    Raises:
      UserError: another model's folder, a file that is missing, damaged or holds more than tensors, or parts that we
        have not.
    """
    chosen = chosen or Chosen()
    folder, file = _locate(source)
    about = _about(folder / "config.json")
    sizes = read_json_object(folder / "sizes.json") if (folder / "sizes.json").is_file() else {}
    ids, side = VISION[about["vision_backbone_id"]]
    side = sizes.get("image_size", side)
    tensors, unused = _checkpoint(file), []
    towers = []
    for timm_id, name in zip(ids, ("featurizer", "fused_featurizer")):
        start = f"vision_backbone.{name}."
        if not any(n.startswith(start) for n in tensors):
            given = {"dinov2": dinov2, "siglip": siglip}[timm.kind_of(timm_id)]
            tensors |= _tower_file(given or _find(folder, timm_id), start)
            unused.append(OTHERS)
        shapes = {n.removeprefix(start): t.shapes[key] for n, (t, key) in tensors.items() if n.startswith(start)}
        towers.append(timm.tower(timm_id, shapes, side, sizes.get("timm_heads")))
    renamed = Renamed(tensors)
    parts = prismatic_parts.parts(towers, about["arch_specifier"], _llama(renamed, sizes.get("llm") or {}))
    for tower in towers:
        mean, std = timm.MEANS[tower.kind]
        parts.spec[tower.kind] = {**parts.spec[tower.kind], "mean": list(mean), "std": list(std)}
    resize, notes = _resize(about["image_resize_strategy"], towers)
    path = folder / "dataset_statistics.json"
    datasets, line = statistics.datasets(path, read_json_object(path) if path.is_file() else {}, side)
    vocab = parts.spec["llm"]["vocab"]
    run = prismatic_parts.run_config(
        parts.spec, chosen, side=side, resize=resize, datasets=datasets, llm_id=about["llm_backbone_id"],
        tokenizer=next(name for start, name in LLMS.items() if about["llm_backbone_id"].startswith(start)),
        edges=min(256, vocab - 64),
    )  # fmt: skip
    return Release("Prismatic", folder, run, renamed, parts.places, "|".join([parts.unused, *unused]),
                   {"datasets": datasets}, {}, [f"read from {file.name}", *notes, line])  # fmt: skip


def _locate(source: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The run folder and the file."""
    if source.is_file():
        return source.parent.parent if source.parent.name == "checkpoints" else source.parent, source
    if not source.is_dir():
        raise UserError(f"{source} does not exist; give a run folder of Prismatic, or a .pt file in it")
    files = sorted((source / "checkpoints").glob("*.pt"))
    latest = source / "checkpoints" / "latest-checkpoint.pt"
    if latest in files or len(files) == 1:
        return source, latest if latest in files else files[0]
    names = ", ".join(file.name for file in files) or "none"
    raise UserError(f"{source / 'checkpoints'} has no latest-checkpoint.pt; give the file as --input (there: {names})")


def _about(path: pathlib.Path) -> dict:
    """What `config.json` says of the model, or what the model stands for that a training of OpenVLA began with."""
    content = read_json_object(path)
    about = content.get("model")
    if about is None and isinstance(content.get("vla"), Mapping):
        base = re.sub(r"(-controlled)?\+\d+b$", "", str(content["vla"].get("base_vlm")))
        if base not in BASES:
            raise UserError(f"{path} began with base_vlm {content['vla'].get('base_vlm')!r}{did_you_mean(base, BASES)}")
        keys = ("vision_backbone_id", "arch_specifier", "image_resize_strategy", "llm_backbone_id")
        about = dict(zip(keys, BASES[base]))
    if not isinstance(about, Mapping):
        raise UserError(f"{path} has no group 'model' and no group 'vla'; this is no run folder of Prismatic")
    for name, known in (("vision_backbone_id", VISION), ("llm_backbone_id", LLMS)):
        value = str(about.get(name))
        if not (value in known or name == "llm_backbone_id" and value.startswith(tuple(LLMS))):
            raise UserError(f"{path} has {name} '{value}', which cannot be imported{did_you_mean(value, known)}")
    return {"arch_specifier": "gelu-mlp", "image_resize_strategy": "resize-naive", **about}


def _checkpoint(path: pathlib.Path) -> dict[str, tuple[Tensors, str]]:
    """{name of Hugging Face's port: (tensors, name there)} of a `.pt` file."""
    file = TorchFile(path)
    state = file.content.get("model") if isinstance(file.content, Mapping) else None
    wanted = {"projector", "llm_backbone"}
    if not isinstance(state, Mapping) or not wanted <= set(state) <= wanted | {"vision_backbone"}:
        held = sorted(map(str, state if isinstance(state, Mapping) else file.content)) if isinstance(
            file.content, Mapping) else type(file.content).__name__  # fmt: skip
        raise UserError(f"{path} is no checkpoint of Prismatic: it holds {held}, expected is 'model' with projector, "
                        "llm_backbone and perhaps vision_backbone")  # fmt: skip
    part = TorchTensors(file, file.tensors({"model": state}))
    return {_port_name(name.removeprefix("model.")): (part, name) for name in part.shapes}


def _port_name(name: str) -> str:
    """The name in Hugging Face's port; one that is none is kept, and refused with the others."""
    part, _, rest = name.partition(".")
    if part == "llm_backbone":
        return f"language_model.{rest.removeprefix('llm.')}"
    if part == "projector":
        if match := re.fullmatch(r"projector\.([024])\.(weight|bias)", rest):
            return f"projector.fc{int(match[1]) // 2 + 1}.{match[2]}"
        return f"projector.{rest}"
    tower, _, rest = rest.partition(".")
    return f"vision_backbone.{PARTS[tower]}.{rest}" if tower in PARTS else name


def _find(folder: pathlib.Path, timm_id: str) -> pathlib.Path:
    """timm's file of a tower in the run folder."""
    files = sorted(folder.glob(f"{timm_id}*.safetensors"))
    if len(files) != 1:
        kind = timm.kind_of(timm_id)
        raise UserError(f"{folder} does not hold the tower '{timm_id}', which was frozen: give timm's file of it with "
                        f"--{kind} FILE (the README of the released weights says where it is)")  # fmt: skip
    return files[0]


def _tower_file(path: pathlib.Path, start: str) -> dict[str, tuple[Tensors, str]]:
    """The tensors of a file of timm's, or of open_clip's, which holds a tower of text besides."""
    file = SafetensorsFile(path)
    if not any(name.startswith(OPEN_CLIP) for name in file.shapes):
        return {f"{start}{name}": (file, name) for name in file.shapes}
    return {start + name.removeprefix(OPEN_CLIP) if name.startswith(OPEN_CLIP) else f"open_clip.{name}": (file, name)
            for name in file.shapes}  # fmt: skip


def _llama(tensors: Tensors, given: Mapping) -> dict:
    """The config of the language model: sizes from the tensors, where `given` does not say."""
    shape = lambda name: tensors.shapes.get(f"language_model.model.{name}.weight", (0, 0))  # noqa: E731
    vocab, dim = shape("embed_tokens")
    layers = [int(m[1]) for n in tensors.shapes if (m := re.match(r"language_model\.model\.layers\.(\d+)\.", n))]
    heads = given.get("num_attention_heads") or max(dim // HEAD, 1)
    read_off = {
        "vocab_size": vocab, "hidden_size": dim, "intermediate_size": shape("layers.0.mlp.gate_proj")[0],
        "num_hidden_layers": max(layers, default=-1) + 1, "num_attention_heads": heads,
        "num_key_value_heads": shape("layers.0.self_attn.k_proj")[0] * heads // max(dim, 1), "rms_norm_eps": EPS,
    }  # fmt: skip
    return {**read_off, **given}


def _resize(strategy: str, towers: list[timm.Tower]) -> tuple[dict, list[str]]:
    """Fields of `PrismaticResize`, and lines about them."""
    resize, notes = {"mode": prismatic_parts.resize_mode(strategy), "interpolation": "bicubic"}, []
    if strategy == "letterbox":
        fills = [[int(x * 255) for x in timm.MEANS[tower.kind][0]] for tower in towers]
        resize["fill"] = fills[-1]
        if len(towers) > 1:
            notes.append(f"images are padded with the colour of the last tower, {fills[-1]}, for both; the native code "
                         f"pads those of the first with {fills[0]}")  # fmt: skip
    return resize, notes
