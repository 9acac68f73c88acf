"""Turns weights of other projects into models of ours.

  python tools/import_weights.py laq --input laq_openx.pt --out runs/laq_openx [--image_size 256]

writes an exported folder that `lapa_jax.load` takes. `.safetensors` files need nothing else; `.pt` files need torch.
"""

import argparse
import pathlib

import numpy as np

from lapa_jax.core.errors import UserError, run_main
from lapa_jax.models.official_laq import convert, unwrap
from lapa_jax.models.pretrained import save_pretrained


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
    """Converts an official LAQ file into an exported folder and says what was done."""
    state = read_state_dict(source)
    if not isinstance(state, dict):
        raise UserError(f"{source} holds a {type(state).__name__}, not a state dict")
    plain, notes = unwrap(state)
    spec, variables, dropped = convert(plain, image_size)
    save_pretrained(out, spec, variables, {"source": {"kind": "official LAQ", "file": source.name}})
    for line in (*notes, *dropped):
        print(line)
    count = sum(np.size(leaf) for leaf in plain.values())
    fields = ", ".join(f"{key}={value}" for key, value in spec.items() if key != "name")
    print(f"{source.name}: {len(plain)} tensors, {count:,} numbers -> {out}\n{fields}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    laq = kinds.add_parser("laq", help="an official LAQ state dict")
    laq.add_argument("--input", type=pathlib.Path, required=True, help=".pt or .safetensors file")
    laq.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    laq.add_argument("--image_size", type=int, default=256, help="side of the frames in pixels")
    args = parser.parse_args(argv)
    import_laq(args.input, args.out, args.image_size)


if __name__ == "__main__":
    run_main(main)
