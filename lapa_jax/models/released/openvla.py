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
from lapa_jax.core.files import read_json
from lapa_jax.models.released import peft, prismatic, timm
from lapa_jax.models.released.base import Release, Tensors
from lapa_jax.models.released.tensors import SafetensorsFolder

PROCESSOR = "preprocessor_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
             "added_tokens.json")  # fmt: skip
VICUNA = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
          "detailed, and polite answers to the user's questions. USER: What action should the robot take to "
          "{instruction}? ASSISTANT:")  # fmt: skip
"""The prompt of openvla-v01-7b."""
SPACE = 29871
"""Llama-2's id of a blank at the end: in training the text went on with "Out: " and the action's tokens."""
MEANS = {"dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
STRATEGIES = {"resize-naive": "squash", "resize-crop": "shorter_side", "letterbox": "letterbox"}
INTERPOLATIONS = {3: "bicubic", 2: "bilinear", "bicubic": "bicubic", "bilinear": "bilinear"}
COLUMNS = {"action": "action", "proprio": "state"}


def read(
    folder: pathlib.Path, adapter: pathlib.Path | None = None, *, dtype: str = "float32", tokenizer: str | None = None,
    text_length: int = 128, center_crop: bool = False, template: str | None = None,
) -> Release:  # fmt: skip
    """Reads what a folder holds, without its numbers.

    Args:
      folder: with `config.json`. adapter: a folder of PEFT's with an adapter that was trained on it, or None.
      dtype: "float32" or "bfloat16", of the model's computation.
      tokenizer: a folder, or a name on the hub; None for the files in `folder`.
      text_length: tokens that prompts are padded to.
      center_crop: see only the middle 0.9 of images' area, as models finetuned with augmentation are run.
      template: of the prompt, see `data.text.prompt`; None for the one that the language model stands for.

    Raises:
      UserError: another model's folder, a file that is missing or damaged, or a part that we have not.
    """
    config, tensors = _open(folder)
    if adapter is not None:
        tensors = peft.Merged(tensors, adapter)
    towers, sizes = _towers(config, tensors)
    arch = "fused-gelu-mlp" if len(towers) == 2 else "gelu-mlp"
    parts = prismatic.parts(towers, arch, config.get("text_config") or {})
    images, notes = _images(folder, config, parts.spec, sizes)
    datasets, statistics_notes = _datasets(folder, adapter, config, sizes)
    vocab = parts.spec["llm"]["vocab"]
    spec = {
        "name": "policies.openvla", **parts.spec, "image_size": sizes[0], "cameras": 1, "text_length": text_length,
        "action_dim": max((entry["features"]["action"]["shape"][0] for entry in datasets.values()), default=7),
        "action_end": vocab - config.get("pad_to_multiple_of", 64), "edges": config.get("n_action_bins", 256),
        "dtype": dtype,
    }  # fmt: skip
    for name in ("llm", *(tower.kind for tower in towers)):
        spec[name] = {**spec[name], "dtype": dtype}
    vicuna = "vicuna" in config.get("llm_backbone_id", "")
    files = {f"tokenizer/{name}": folder / name for name in TOKENIZER if (folder / name).is_file()}
    if tokenizer is not None:
        files = {}
    elif not files:
        notes.append(f"{folder.name} has no files of a tokenizer: give the run one before it acts, with --tokenizer")
    data = {
        "samples": "chunks", "fields": ["image", "text", "action"], "chunk_length": 1, "camera": "image",
        "image_size": sizes[0], "resize": images, "normalize": "openvla" if datasets else "none",
        "text_length": text_length,
        "text_tokenizer": {"name": tokenizer or "{run}/tokenizer", "append": SPACE,
                           "lower": True, "template": template or (VICUNA if vicuna else "openvla")},
    }  # fmt: skip
    if center_crop:
        data["resize"]["area"] = 0.9
    if isinstance(tensors, peft.Merged):
        notes.append(f"the adapter {adapter} changes {tensors.count} tensors")
    return Release("OpenVLA", folder, {"name": "openvla", "model": spec, "data": data}, tensors, parts.places,
                   parts.unused, {"datasets": datasets}, files, [*notes, *statistics_notes])  # fmt: skip


def _open(folder: pathlib.Path) -> tuple[Mapping, Tensors]:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give that of a Hugging Face checkpoint")
    if peft.is_adapter(folder) and not (folder / "config.json").is_file():
        base = read_json(folder / peft.CONFIG).get("base_model_name_or_path")
        raise UserError(f"{folder} is an adapter; give the model that it was trained on ({base}) as --input, and this "
                        f"as --adapter {folder}")  # fmt: skip
    config = read_json(folder / "config.json")
    if config.get("model_type") not in ("openvla", "prismatic"):
        raise UserError(f"{folder / 'config.json'} has model_type {config.get('model_type')!r}; this imports 'openvla'")
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
    about = read_json(path) if path.is_file() else {}
    if not about:
        notes.append(f"{folder.name} has no {PROCESSOR}: images are normalised as in the released OpenVLA")
    normalize = about.get("tvf_normalize_params")
    if normalize is None and about.get("means"):
        normalize = [{"mean": mean, "std": std} for mean, std in zip(about["means"], about["stds"])]
    if normalize is None:
        # the released processor was built with bfloat16 as default dtype
        normalize = [{"mean": _rounded(MEANS[kind][0]), "std": _rounded(MEANS[kind][1])} for kind in kinds]
    if len(normalize) != len(kinds):
        raise UserError(f"{path} normalises for {len(normalize)} towers, the model has {len(kinds)}")
    for kind, numbers in zip(kinds, normalize):
        spec[kind] = {**spec[kind], "mean": list(numbers["mean"]), "std": list(numbers["std"])}
    strategy = about.get("image_resize_strategy") or config.get("image_resize_strategy", "resize-naive")
    if strategy not in STRATEGIES:
        raise UserError(f"image_resize_strategy '{strategy}' is unknown; known: {', '.join(STRATEGIES)}")
    given = [entry.get("interpolation") for entry in about.get("tvf_resize_params") or ()]
    found = {INTERPOLATIONS.get(value) for value in given or about.get("interpolations") or ["bicubic"]}
    if len(found) != 1 or None in found:
        raise UserError(f"{path} resizes with {given}; bicubic or bilinear for all towers is known")
    for shape in about.get("input_sizes") or ():
        if tuple(shape[-2:]) != (sizes[0], sizes[0]):
            raise UserError(f"{path} has input_sizes {about['input_sizes']}, config.json image_sizes {sizes}")
    resize = {"mode": STRATEGIES[strategy], "interpolation": found.pop()}
    if strategy == "letterbox":
        # the port fills with one colour for all towers, that of the last one
        means = about.get("means") or [MEANS[kind][0] for kind in kinds]
        resize["fill"] = list(about.get("tvf_letterbox_fill") or [int(x * 255) for x in means[-1]])
    return resize, notes


def _rounded(values) -> list[float]:
    return np.asarray(values, ml_dtypes.bfloat16).astype(np.float64).tolist()


def _datasets(folder, adapter, config: Mapping, sizes) -> tuple[dict, list[str]]:
    """The entries of `meta["datasets"]`, and lines about them."""
    for place in (adapter, folder):
        path = None if place is None else place / "dataset_statistics.json"
        if path is not None and path.is_file():
            stats = read_json(path)
            break
    else:
        path, stats = folder / "config.json", config.get("norm_stats") or {}
    datasets = {name: _dataset(path, name, entry, sizes[0]) for name, entry in stats.items()}
    if datasets:
        return datasets, [f"actions of {len(datasets)} data sets: {', '.join(datasets)}"]
    return {}, ["no statistics of actions: this is a vision-language model, and acts when it was trained on some"]


def _dataset(path: pathlib.Path, name: str, entry: Mapping, side: int) -> dict:
    statistics, features = {}, {"image": {"shape": [side, side, 3]}}
    for theirs, ours in COLUMNS.items():
        if theirs not in entry:
            continue
        summary = {key: entry[theirs].get(key) for key in ("mean", "std", "min", "max", "q01", "q99")}
        widths = {np.shape(value) for value in summary.values()}
        if len(widths) != 1 or len(shape := widths.pop()) != 1:
            raise UserError(f"{path}: the statistics of '{theirs}' of '{name}' lack one of mean, std, min, max, q01, "
                            "q99, or these differ in length")  # fmt: skip
        mask = entry[theirs].get("mask")
        if mask is not None and np.shape(mask) != shape:
            raise UserError(f"{path}: the mask of '{theirs}' of '{name}' has {np.size(mask)} entries, not {shape[0]}")
        count = int(entry.get("num_transitions") or 1)
        statistics[ours] = {"count": count, **summary, "mask": [True] * shape[0] if mask is None else list(mask)}
        features[ours] = {"shape": list(shape), "dtype": "float32"}
    if "action" not in statistics:
        raise UserError(f"{path}: '{name}' has no statistics of its actions")
    return {"statistics": statistics, "features": features, "fps": None, "fingerprint": None, "gap_frames": None,
            "labels": None, "weight": 1.0}  # fmt: skip
