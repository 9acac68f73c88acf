"""Turns weights of other projects into models of ours.

  python tools/import_weights.py laq --input laq_openx.pt --out runs/laq_openx [--image_size 256]
  python tools/import_weights.py llama --input Llama-2-7b-hf --out weights/llama [--no_head] [--dtype bfloat16]
  python tools/import_weights.py siglip --input siglip-so400m-patch14-224 --out weights/siglip [--layer -2]
  python tools/import_weights.py dinov2 --input dinov2-with-registers-large --out weights/dinov2 [--layer -2]

write run folders with the checkpoint of step 0: `lapa_jax.load` takes the first, `config.init_from` all, each device
reading its own part. `.safetensors` files need nothing else; `.pt` files of LAQ need torch. The folders of the others
are Hugging Face's, with `config.json` and safetensors in one file or in shards; tensors pass through one by one, by way
of a file beside the checkpoint that needs as much room again while the import lasts.
"""

import argparse
import math
import pathlib

import jax.numpy as jnp
import numpy as np

from lapa_jax.core import tree
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.files import arrays_on_disk, read_json
from lapa_jax.models import hugging_face
from lapa_jax.models.official_laq import convert, unwrap
from lapa_jax.train.checkpoint import check_unused, write_weights


def read_state_dict(path: pathlib.Path) -> dict:
    """Reads tensors (or nested dicts of them) as numpy arrays; nothing in a `.pt` file but tensors is ever executed.

    Raises:
      UserError: no such file, an unknown ending, a damaged file, or torch is needed and not installed.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        import safetensors
        import safetensors.numpy

        try:
            return safetensors.numpy.load_file(path)
        except safetensors.SafetensorError as error:
            raise UserError(f"{path} is not a readable safetensors file ({error})") from None
    if path.suffix in (".pt", ".pth", ".bin"):
        return _read_torch(path)
    raise UserError(f"{path} ends in '{path.suffix}'; known endings: .safetensors, .pt, .pth, .bin")


def _read_torch(path: pathlib.Path) -> dict:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path} is a torch file; install torch with `pip install 'lapa_jax[torch]'`") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types: zip, unpickling, runtime and end-of-file errors
        raise UserError(f"{path} holds no plain tensors that torch can read ({str(error).splitlines()[0]})") from None
    return _to_numpy(state, path)


def _to_numpy(value, path: pathlib.Path):
    if isinstance(value, dict):
        return {key: _to_numpy(v, path) for key, v in value.items()}
    return value.float().numpy() if hasattr(value, "numpy") and hasattr(value, "float") else value


def import_laq(source: pathlib.Path, out: pathlib.Path, image_size: int) -> None:
    """Converts an official LAQ file into a run folder and says what was done."""
    state = read_state_dict(source)
    if not isinstance(state, dict):
        raise UserError(f"{source} holds a {type(state).__name__}, not a state dict")
    plain, notes = unwrap(state)
    spec, variables, dropped = convert(plain, image_size)
    write_weights(out, {"model": spec}, variables, {"source": {"kind": "official LAQ", "file": source.name}})
    for line in (*notes, *dropped):
        print(line)
    count = sum(np.size(leaf) for leaf in plain.values())
    fields = ", ".join(f"{key}={value}" for key, value in spec.items() if key != "name")
    print(f"{source.name}: {len(plain)} tensors, {count:,} numbers -> {out}\n{fields}")


FLOATS = ("F32", "F16", "BF16")


class TensorFolder:
    """The tensors of a Hugging Face checkpoint: `model.safetensors`, or the shards that its index names.

    Attributes:
      shapes: {name: shape}.
    """

    def __init__(self, folder: pathlib.Path):
        """Reads the headers.

        Raises:
          UserError: no such files, a damaged one, shards that do not hold what the index says, integers.
        """
        self._files, self.shapes = {}, {}
        index = folder / "model.safetensors.index.json"
        told = read_json(index).get("weight_map", {}) if index.is_file() else None
        for path in [folder / name for name in sorted(set(told.values()))] if told else [folder / "model.safetensors"]:
            self._add(path)
        if told is not None and told != {name: path.name for name, path in self._files.items()}:
            held = {name: path.name for name, path in self._files.items()}
            wrong = sorted(name for name in {*told, *held} if told.get(name) != held.get(name))
            raise UserError(f"{index} and its shards do not agree on {', '.join(wrong)}; download the checkpoint again")

    def _add(self, path: pathlib.Path) -> None:
        if not path.is_file():
            raise UserError(f"{path} does not exist; a Hugging Face folder has config.json and model.safetensors, or "
                            "model.safetensors.index.json and the shards that it names")
        with self._open(path) as file:
            for name in file.keys():
                part = file.get_slice(name)
                if part.get_dtype() not in FLOATS:
                    raise UserError(f"{path}: {name} is {part.get_dtype()}; known: {', '.join(FLOATS)} (quantised "
                                    "weights cannot be imported)")
                self._files[name], self.shapes[name] = path, tuple(part.get_shape())

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32. The file is mapped anew, so that what was read before does not stay in memory."""
        with self._open(self._files[name]) as file:
            return np.asarray(file.get_tensor(name), np.float32)

    @staticmethod
    def _open(path: pathlib.Path):
        import safetensors

        try:
            return safetensors.safe_open(path, framework="numpy")
        except safetensors.SafetensorError as error:
            raise UserError(f"{path} is not a readable safetensors file ({error})") from None


def import_hugging_face(kind: str, source: pathlib.Path, out: pathlib.Path, dtype: str, **options) -> None:
    """Writes a Hugging Face checkpoint as a run folder and says what was done.

    Args:
      kind, options: as of `hugging_face.plan`.
      source: the folder that was downloaded. out: the folder to write. dtype: what numbers are stored as.
    """
    if not source.is_dir():
        raise UserError(f"{source} is no folder; give that of a Hugging Face checkpoint")
    plan = hugging_face.plan(kind, read_json(source / "config.json"), **options)
    tensors = TensorFolder(source)
    names = {_without_prefix(name, plan.prefixes): name for name in tensors.shapes}
    wanted = hugging_face.shapes(plan.spec)
    given = {plain: tensors.shapes[name] for plain, name in names.items()}
    if wrong := hugging_face.differences(plan, given, wanted):
        raise UserError(f"{source} is no complete {kind} of its config.json; {wrong}")
    meta = {"source": {"kind": f"Hugging Face {kind}", "folder": source.resolve().name}}
    with arrays_on_disk(out, wanted, jnp.dtype(dtype)) as arrays:
        for plain, entry in plan.entries.items():
            array = arrays[entry.path]
            array[slice(None) if entry.layer is None else entry.layer] = entry.change(tensors.read(names[plain]))
        write_weights(out, {"model": plan.spec}, {"params": tree.unflatten(arrays)}, meta)
    if left := sorted(set(given) - set(plan.entries)):
        print(f"left out: {len(left)} tensors that the model does not use, {', '.join(left[:3])}"
              f"{', ...' if len(left) > 3 else ''}")  # fmt: skip
    fields = ", ".join(f"{key}={value}" for key, value in plan.spec.items() if key != "name")
    count = sum(math.prod(shape) for shape in wanted.values())
    print(f"{source.name}: {len(plan.entries)} tensors, {count:,} numbers, {dtype} -> {out}\n{fields}")


def _without_prefix(name: str, prefixes: tuple[str, ...]) -> str:
    return next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    laq = kinds.add_parser("laq", help="an official LAQ state dict")
    laq.add_argument("--input", type=pathlib.Path, required=True, help=".pt or .safetensors file")
    laq.add_argument("--image_size", type=int, default=256, help="side of the frames in pixels")
    for kind in hugging_face.KINDS:
        tower = kinds.add_parser(kind, help=f"a Hugging Face folder of {kind}")
        tower.add_argument("--input", type=pathlib.Path, required=True, help="folder with config.json and safetensors")
        tower.add_argument("--dtype", default="float32", choices=tree.STORED, help="what the numbers are stored as")
        if kind == "llama":
            tower.add_argument("--no_head", dest="head", action="store_false", help="leave the logits' matrix out")
        else:
            tower.add_argument("--layer", type=int, default=-1, choices=(-1, -2),
                               help="last block with the final norm (-1), or the one before without (-2)")  # fmt: skip
    for command in kinds.choices.values():
        command.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    options = vars(parser.parse_args(argv))
    kind, source, out = (options.pop(name) for name in ("kind", "input", "out"))
    check_unused(out)
    if kind == "laq":
        import_laq(source, out, **options)
    else:
        import_hugging_face(kind, source, out, **options)


if __name__ == "__main__":
    run_main(main)
