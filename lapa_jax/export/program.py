"""Runs an exported StableHLO program: the policy as it was, without the code of its model and without Flax.

policy = program.load(folder) is a `Policy` or `LatentPolicy` like any other. Needed are jax, numpy and the tokenizer of
the instructions. What a program is, and how it is made, is described in `stablehlo.py`.
"""

import hashlib
import pathlib
from collections.abc import Mapping

import jax
import jax.export
import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json
from lapa_jax.core.pretrained import CONFIG_FILE, load_pretrained
from lapa_jax.inference import kinds
from lapa_jax.inference.policies import LatentPolicy, Policy

FORMAT, VERSION = "lapa_jax.program", 1
PROGRAM_FILE, PROGRAM_JSON = "program.bin", "program.json"
_SEES = ("cameras", "image_size", "text_length")
ATTRIBUTES = {"latent_policy": _SEES, "action_policy": (*_SEES, "state_dim"),
              "coded_policy": (*_SEES, "state_dim")}
"""{kind of model: the fields that its inference object asks for}."""
AS = {"token_policy": "action_policy"}
"""{kind of model: what its program is, if something else}: tokens are decoded within the program, in float32."""
INPUTS = ("image", "text", "text_mask", "state")
OUTPUTS = ("action", "codes", "logits")
BATCH = "rows"


class Program:
    """A forward pass in place of a model: it has what `Policy` and `LatentPolicy` ask of one, and nothing else.

    Attributes: those of `ATTRIBUTES` that the model had.
    """

    def __init__(self, exported: jax.export.Exported, about: Mapping):
        """Args: exported: the program. about: the content of `program.json`."""
        self._exported, self._inputs, self._outputs = exported, about["inputs"], about["outputs"]
        self.kind = about["kind"]
        for name, value in about["attributes"].items():
            setattr(self, name, value)

    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """Zeros with the shapes and dtypes of what the program reads and gives."""
        return {name: np.zeros((batch_size, *entry["shape"][1:]), entry["dtype"])
                for name, entry in {**self._inputs, **self._outputs}.items()}  # fmt: skip

    def history_template(self, codes):
        """Prompts are written by the model's code, which is not here."""
        raise UserError("an exported program sees no codes of the step before; leave history out, or load the run")

    def apply(self, variables: Mapping, batch: Mapping, *, method: str) -> dict[str, jax.Array]:
        """The model's `predict`, which is the one method of a program."""
        if method != "predict":
            raise ValueError(f"an exported program can predict; '{method}' needs the model")
        return self._exported.call(tree.flatten(variables), {name: batch[name] for name in self._inputs})


def load(folder, devices=None) -> Policy | LatentPolicy:
    """The policy whose program and weights lie in a folder.

    Args:
      folder: what `launch/export.py --format stablehlo` wrote. devices: as of `load.load`.

    Raises:
      UserError: a file is missing or damaged, not of one export, or the program was not made for these devices.
    """
    folder = pathlib.Path(folder)
    about = read_json(folder / PROGRAM_JSON)
    if not isinstance(about, dict) or (about.get("format"), about.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{folder / PROGRAM_JSON} does not describe a program of version {VERSION} that this release "
                        "reads; export it again")  # fmt: skip
    data = _whole(folder / PROGRAM_FILE, about["program_sha256"])
    # The config names the model's fields and the scaling, and must be that of this program.
    _whole(folder / CONFIG_FILE, about["config_sha256"])
    devices = devices or jax.local_devices()
    _check_platform(devices[0], about["platforms"], folder)
    spec, variables, meta = load_pretrained(folder)
    config = config_lib.from_json({**meta["config"], "model": spec})
    program = Program(jax.export.deserialize(bytearray(data)), about)
    make = kinds.resolve(kinds.KINDS[about["kind"]].trained)
    return make(program, variables, config=config, datasets=meta["datasets"], step=meta["step"], devices=devices)


def _whole(path: pathlib.Path, digest: str) -> bytes:
    """The bytes of a file that has this sha256."""
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f"{path} is missing, damaged or not of the export beside it; export the model again")
    return data


def _check_platform(device: jax.Device, platforms, folder) -> None:
    version = getattr(device.client, "platform_version", "").lower()
    # JAX calls both vendors' devices "gpu"; a program names which of the two it was made for.
    name = {"gpu": "rocm" if "rocm" in version else "cuda"}.get(device.platform, device.platform)
    if name not in platforms:
        raise UserError(f"the program in {folder} was made for {', '.join(platforms)}, these devices are {name}; "
                        f"export it again with --platform {name}")  # fmt: skip
