"""OpenVLA (Kim et al. 2024, arXiv:2406.09246) as its Hugging Face folders hold it: released, finetuned and merged, or
with an adapter that was not merged. UniVLA's policy has the same layout.

Read are `config.json`, the safetensors, `preprocessor_config.json`, `dataset_statistics.json` and the tokenizer's
files; the Python files of the folder are never looked at.
"""

import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json_object
from lapa_jax.models.released import peft, prismatic_parts, statistics, timm
from lapa_jax.models.released.base import Release, Tensors
from lapa_jax.models.released.prismatic_parts import Chosen
from lapa_jax.models.released.tensors import SafetensorsFolder

PROCESSOR = "preprocessor_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
             "added_tokens.json")  # fmt: skip
OFT = ("action_head", "proprio_projector", "noisy_action_projector", "vision_backbone")
"""Beginnings of the names of files that lie beside an OpenVLA-OFT; its other files are those of an OpenVLA."""
INTERPOLATIONS = {3: "bicubic", 2: "bilinear", "bicubic": "bicubic", "bilinear": "bilinear"}


def read(folder: pathlib.Path, adapter: pathlib.Path | None = None, chosen: Chosen | None = None) -> Release:
    """Reads what a folder holds, without its numbers.

    Args:
      folder: with `config.json`. adapter: a folder of PEFT's with an adapter that was trained on it, or None.
      chosen: by the user; its tokenizer is by default that of the folder.

    Raises:
      UserError: another model's folder, a file that is missing or damaged, or a part that we have not.
    """
    chosen = chosen or Chosen()
    config, tensors = _open(folder)
    if adapter is not None:
        tensors = peft.Merged(tensors, adapter)
    towers, sizes = _towers(config, tensors)
    parts = prismatic_parts.parts(towers, "fused-gelu-mlp" if len(towers) == 2 else "gelu-mlp",
                                  config.get("text_config") or {})  # fmt: skip
    resize, notes = _images(folder, config, parts.spec, sizes)
    datasets, line = statistics.datasets(*_statistics(folder, adapter, config), sizes[0])
    files = {f"tokenizer/{name}": folder / name for name in TOKENIZER if (folder / name).is_file()}
    if not files and chosen.tokenizer is None:
        notes.append(f"{folder.name} has no files of a tokenizer: give the run one before it acts, with --tokenizer")
    if isinstance(tensors, peft.Merged):
        notes.append(f"the adapter {adapter} changes {tensors.count} tensors")
    run = prismatic_parts.run_config(
        parts.spec, chosen, side=sizes[0], resize=resize, datasets=datasets, llm_id=config.get("llm_backbone_id", ""),
        tokenizer="{run}/tokenizer", padding=config.get("pad_to_multiple_of", 64),
        edges=config.get("n_action_bins", 256),
    )  # fmt: skip
    return Release("OpenVLA", folder, run, tensors, parts.places, parts.unused, {"datasets": datasets},
                   {} if chosen.tokenizer else files, [*notes, line])  # fmt: skip


def _open(folder: pathlib.Path) -> tuple[Mapping, Tensors]:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give that of a Hugging Face checkpoint")
    if peft.is_adapter(folder) and not (folder / "config.json").is_file():
        base = read_json_object(folder / peft.CONFIG).get("base_model_name_or_path")
        raise UserError(f"{folder} is an adapter; give the model that it was trained on ({base}) as --input, and this "
                        f"as --adapter {folder}")  # fmt: skip
    config = read_json_object(folder / "config.json")
    if config.get("model_type") not in ("openvla", "prismatic"):
        raise UserError(f"{folder / 'config.json'} has model_type {config.get('model_type')!r}; this imports 'openvla'")
    if heads := sorted(path.name for kind in OFT for path in folder.glob(f"{kind}--*.pt")):
        raise UserError(f"{folder} is an OpenVLA-OFT ({', '.join(heads)}), whose attention and heads are others; it "
                        "cannot be imported")  # fmt: skip
    return config, SafetensorsFolder(folder)


def _towers(config: Mapping, tensors: Tensors) -> tuple[list[timm.Tower], list[int]]:
    """The towers in order, and the sides of their images."""
    ids, acts = config.get("timm_model_ids"), config.get("timm_override_act_layers") or [None, None]
    if not isinstance(ids, list) or len(ids) not in (1, 2):
        raise UserError(f"config.json has timm_model_ids {ids!r}; one or two names are needed")
    if config.get("use_fused_vision_backbone", len(ids) == 2) != (len(ids) == 2):
        raise UserError(f"config.json has {len(ids)} timm_model_ids, which use_fused_vision_backbone does not fit")
    if any(act is not None for act in acts):
        raise UserError(f"config.json has timm_override_act_layers {acts}; only towers with their own can be imported")
    towers = []
    for timm_id, name in zip(ids, ("featurizer", "fused_featurizer")):
        start = f"vision_backbone.{name}."
        shapes = {n.removeprefix(start): shape for n, shape in tensors.shapes.items() if n.startswith(start)}
        towers.append(timm.tower(timm_id, shapes))
    sizes = config.get("image_sizes") or [tower.spec["image_size"] for tower in towers]
    if len(set(sizes)) > 1:
        raise UserError(f"config.json has image_sizes {sizes}; towers of the same size are needed")
    for timm_id, tower, size in zip(ids, towers, sizes):
        if size // tower.spec["patch"] * tower.spec["patch"] != tower.spec["image_size"]:
            raise UserError(f"image_sizes {sizes} do not go with the positions of '{timm_id}', which are for images of "
                            f"{tower.spec['image_size']} pixels")  # fmt: skip
    return towers, sizes


def _images(folder: pathlib.Path, config: Mapping, spec: dict, sizes: list[int]) -> tuple[dict, list[str]]:
    """How images become what the towers see: fields of `PrismaticResize`; sets the towers' `mean` and `std`."""
    kinds, path, notes = [timm.kind_of(timm_id) for timm_id in config["timm_model_ids"]], folder / PROCESSOR, []
    about = read_json_object(path) if path.is_file() else {}
    if not about:
        notes.append(f"{folder.name} has no {PROCESSOR}: images are normalised as in the released OpenVLA")
    normalize = about.get("tvf_normalize_params")
    if normalize is None and about.get("means"):
        normalize = [{"mean": mean, "std": std} for mean, std in zip(about["means"], about["stds"])]
    if normalize is None:
        # the released processor was built with bfloat16 as default dtype
        normalize = [dict(zip(("mean", "std"), map(_rounded, timm.MEANS[kind]))) for kind in kinds]
    if len(normalize) != len(kinds):
        raise UserError(f"{path} normalises for {len(normalize)} towers, the model has {len(kinds)}")
    for kind, numbers in zip(kinds, normalize):
        spec[kind] = {**spec[kind], "mean": list(numbers["mean"]), "std": list(numbers["std"])}
    strategy = about.get("image_resize_strategy") or config.get("image_resize_strategy", "resize-naive")
    given = [entry.get("interpolation") for entry in about.get("tvf_resize_params") or ()]
    interpolations = {INTERPOLATIONS.get(value) for value in given or about.get("interpolations") or ["bicubic"]}
    if len(interpolations) != 1 or None in interpolations:
        raise UserError(f"{path} resizes with {given}; bicubic or bilinear for all towers is known")
    for shape in about.get("input_sizes") or ():
        if tuple(shape[-2:]) != (sizes[0], sizes[0]):
            raise UserError(f"{path} has input_sizes {about['input_sizes']}, config.json image_sizes {sizes}")
    resize = {"mode": prismatic_parts.resize_mode(strategy), "interpolation": interpolations.pop()}
    if strategy == "letterbox":
        # the port fills with one colour for all towers, that of the last one
        means = about.get("means") or [timm.MEANS[kind][0] for kind in kinds]
        resize["fill"] = list(about.get("tvf_letterbox_fill") or [int(x * 255) for x in means[-1]])
    return resize, notes


def _rounded(values) -> list[float]:
    return np.asarray(values, ml_dtypes.bfloat16).astype(np.float64).tolist()


def _statistics(folder: pathlib.Path, adapter: pathlib.Path | None, config: Mapping) -> tuple[pathlib.Path, Mapping]:
    """Those beside the adapter go before those of the folder, and these before those of the config."""
    for place in (adapter, folder):
        if place is not None and (path := place / "dataset_statistics.json").is_file():
            return path, read_json_object(path)
    return folder / "config.json", config.get("norm_stats") or {}
