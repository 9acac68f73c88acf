"""UniVLA's policy: a Hugging Face folder in OpenVLA's layout, and the action decoder of a finetuned one beside it."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json_object
from lapa_jax.core.torch_file import TorchFile
from lapa_jax.models.released import openvla
from lapa_jax.models.released.base import Place, Release, Tensors, same
from lapa_jax.models.released.prismatic_parts import Chosen
from lapa_jax.models.released.tensors import Renamed, SafetensorsFile, TorchTensors

KIND = "policy of UniVLA"
DECODER = "action_decoder."
POOLS = {"visual_pool": "visual_pool", "latent_action_pool": "latent_pool"}
ACTION = re.compile(r"<ACT_(\d+)>")
NEEDED = ("visual_pool.latents", "visual_pool.mlp.1.weight", "latent_action_pool.latents", "proj.0.bias")


def read(
    folder: pathlib.Path, *, decoder: pathlib.Path | None = None, adapter: pathlib.Path | None = None,
    chosen: Chosen | None = None, code_length: int = 4, codebook_size: int | None = None, decoder_heads: int = 8,
) -> Release:  # fmt: skip
    """Reads what the files hold, without the numbers.

    Args:
      folder, adapter, chosen: as of `openvla.read`.
      decoder: a state dict of the action decoder, `.pt` or safetensors; None for a model that gives codes.
      code_length: codes of a latent action. codebook_size: how many there are; None for as many as the tokenizer has
        tokens `<ACT_0>`, ..., or 16. decoder_heads: of the decoder's attention.

    Raises:
      UserError: a file that is missing, damaged or of something else.
    """
    release = openvla.read(folder, adapter, chosen)
    model, data = dict(release.config["model"]), dict(release.config["data"])
    action_dim, first = model["action_dim"], model["action_end"] + 1
    for name in ("action_dim", "action_end", "edges", "choose"):
        del model[name]
    tokens, notes = _codes(folder), list(release.notes)
    if tokens:
        first = min(tokens.values())
        if [tokens.get(code) for code in range(len(tokens))] != list(range(first, first + len(tokens))):
            raise UserError(f"{folder}: the ids of <ACT_0>, ... are {sorted(tokens.values())}; ids in a row are needed")
    else:
        notes.append(f"{folder.name} has no tokens <ACT_0>, ...: code 0 is taken to be the id {first}; codes of the "
                     "step before cannot be put into prompts")  # fmt: skip
    codebook_size = codebook_size or len(tokens) or 16
    model |= {"name": "policies.univla", "code_length": code_length, "codebook_size": codebook_size,
              "first_code": first}  # fmt: skip
    tensors, places = release.tensors, dict(release.places)
    if decoder is None:
        data |= {"samples": "steps", "fields": ["image", "text", "latent"], "normalize": "none"}
        del data["chunk_length"]
        meta, notes = {}, [note for note in notes if not note.startswith(("actions of ", "no statistics of actions"))]
    else:
        if not release.meta["datasets"]:
            raise UserError(f"{folder} has no statistics of the actions that {decoder} gives; put the finetuned "
                            "model's dataset_statistics.json beside its config.json")  # fmt: skip
        parts = _open(decoder)
        model |= _decoder(decoder, parts.shapes, action_dim, decoder_heads)
        fields = ["image", "text", "action", *(["state"] if model["state_dim"] else [])]
        data |= {"chunk_length": model["chunk_length"], "fields": fields}
        places |= _decoder_places(model["state_dim"])
        tensors = Renamed({name: (tensors, name) for name in tensors.shapes}
                          | {DECODER + name: (parts, name) for name in parts.shapes})  # fmt: skip
        meta = release.meta
    config = {"name": "univla", "model": model, "data": data}
    return dataclasses.replace(release, kind=KIND, config=config, tensors=tensors, places=places, meta=meta,
                               notes=notes)  # fmt: skip


def _codes(folder: pathlib.Path) -> dict[int, int]:
    """{code: id} of the tokens `<ACT_k>` that the folder's tokenizer was given."""
    ids = {}
    if (path := folder / "added_tokens.json").is_file():
        ids |= read_json_object(path)
    if (path := folder / "tokenizer.json").is_file():
        ids |= {token["content"]: token["id"] for token in read_json_object(path).get("added_tokens") or ()}
    return {int(match[1]): int(number) for token, number in ids.items() if (match := ACTION.fullmatch(token))}


def _open(path: pathlib.Path) -> Tensors:
    """The decoder's tensors, by the names within it; the real robot's first pool has another name."""
    if path.suffix == ".safetensors":
        tensors = SafetensorsFile(path)
    else:
        file = TorchFile(path)
        tensors = TorchTensors(file, file.tensors(file.content if isinstance(file.content, Mapping) else {}))
    names = {re.sub(r"^(module\.)?(net\.)?", "", name): (tensors, name) for name in tensors.shapes}
    names = {re.sub(r"^attn_pool\.", "latent_action_pool.", name): place for name, place in names.items()}
    if missing := [name for name in NEEDED if name not in names]:
        shown = ", ".join(sorted(tensors.shapes)[:5]) or "no tensors"
        raise UserError(f"{path} is no action decoder of UniVLA; missing ({len(missing)}): {', '.join(missing)}; it "
                        f"holds {shown}")  # fmt: skip
    return Renamed(names)


def _decoder(path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], action_dim: int, heads: int) -> dict:
    """Fields of `univla_action.Model`."""
    rows, state = shapes["proj.0.bias"][0], shapes.get("proprio_proj.0.weight")
    if rows % action_dim:
        raise UserError(f"{path} gives {rows} numbers, which are no chunk of actions of {action_dim} dimensions")
    dim = shapes["visual_pool.latents"][-1]
    if dim % heads:
        raise UserError(f"--decoder_heads {heads} does not divide a width of {dim}")
    return {"name": "policies.univla_action", "action_dim": action_dim, "chunk_length": rows // action_dim,
            "state_dim": state[-1] if state else 0, "decoder_dim": dim, "decoder_heads": heads,
            "decoder_hidden": shapes["visual_pool.mlp.1.weight"][-1], "squash": state is None}  # fmt: skip


def _decoder_places(state_dim: int) -> dict[str, tuple[Place, ...]]:
    places = _linear("proj.0", "to_actions")
    for theirs, ours in POOLS.items():
        places[f"{theirs}.latents"] = (Place(f"{ours}/query", without_first),)
        places |= _linear(f"{theirs}.projection", f"{ours}/projection")
        places[f"{theirs}.attn.q.weight"] = (Place(f"{ours}/attention/query/kernel", np.transpose),)
        places[f"{theirs}.attn.kv.weight"] = (Place(f"{ours}/attention/key/kernel", first_half),
                                              Place(f"{ours}/attention/value/kernel", last_half))  # fmt: skip
        places |= _linear(f"{theirs}.attn.proj", f"{ours}/attention/out")
        for norm, name in (("attn_norm", "attention_norm"), ("mlp_norm", "feedforward_norm")):
            places[f"{theirs}.{norm}.g"] = (Place(f"{ours}/{name}/scale", same),)
        for name, part in (("up", first_half), ("gate", last_half)):
            for kind, parameter in (("weight", "kernel"), ("bias", "bias")):
                places.setdefault(f"{theirs}.mlp.0.project.{kind}", ())
                places[f"{theirs}.mlp.0.project.{kind}"] += (Place(f"{ours}/feedforward/{name}/{parameter}", part),)
        places |= _linear(f"{theirs}.mlp.1", f"{ours}/feedforward/down")
    if state_dim:
        places |= _linear("proprio_proj.0", "state_up") | _linear("proprio_proj.2", "state_out")
    return {DECODER + name: some for name, some in places.items()}


def _linear(theirs: str, ours: str) -> dict[str, tuple[Place, ...]]:
    return {f"{theirs}.weight": (Place(f"{ours}/kernel", np.transpose),),
            f"{theirs}.bias": (Place(f"{ours}/bias", same),)}  # fmt: skip


def without_first(x: np.ndarray) -> np.ndarray:
    """The one latent, [1, D] -> [D]."""
    return x[0] if x.ndim == 2 and len(x) == 1 else x


def first_half(x: np.ndarray) -> np.ndarray:
    """The first half of the outputs of a linear layer, [2 N, D] -> [D, N] or [2 N] -> [N]."""
    return x[: len(x) // 2].T


def last_half(x: np.ndarray) -> np.ndarray:
    """The other one."""
    return x[len(x) // 2 :].T
