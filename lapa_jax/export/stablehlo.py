"""A policy's forward pass as a StableHLO program beside its weights; `program.py` runs it without the model's code."""

import hashlib
import pathlib
from collections.abc import Sequence

import jax
import jax.export

from lapa_jax.core import tree
from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.files import atomic_path, write_json
from lapa_jax.core.pretrained import CONFIG_FILE
from lapa_jax.data import images
from lapa_jax.export.program import (
    AS,
    ATTRIBUTES,
    BATCH,
    FORMAT,
    INPUTS,
    OUTPUTS,
    PROGRAM_FILE,
    PROGRAM_JSON,
    VERSION,
)
from lapa_jax.inference.base import TrainedModel
from lapa_jax.inference.kinds import Kind

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def check_kind(kind: Kind, path, platforms: Sequence[str]) -> None:
    """Refuses what has no program, and unknown platforms."""
    if not kind.program:
        raise UserError(f"{path} holds a {kind.noun}, which has no program to export; that have the vision-language "
                        "policies (stages 2 and 3): leave out --format stablehlo")  # fmt: skip
    for name in platforms:
        if name not in PLATFORMS:
            raise UserError(f"platform '{name}' is none of JAX's{did_you_mean(name, PLATFORMS)}")


def save_program(trained: TrainedModel, folder: pathlib.Path, platforms: Sequence[str]) -> None:
    """Writes `config.json`, `model.safetensors` (as `save_pretrained`), `program.bin` and `program.json`.

    The weights are arguments of the program, by name, and not constants in it: it has some 100 kB, whatever the model.
    The number of rows is left open, so one program serves every batch. cuDNN's fused attention (`flash`), which one
    platform alone has, is replaced by the compiler's own.

    Args:
      trained: a `Policy` or `LatentPolicy`. folder: to write to. platforms: of `PLATFORMS`.
    """
    program = _lower(trained, platforms)
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    kind = AS.get(trained.kind.name, trained.kind.name)
    trained.save_pretrained(folder)
    data = bytes(program.serialize())
    with atomic_path(folder / PROGRAM_FILE) as temporary:
        temporary.write_bytes(data)
    write_json(folder / PROGRAM_JSON, {
        "format": FORMAT, "version": VERSION, "kind": kind, "platforms": list(program.platforms),
        "jax": jax.__version__, "calling_convention": program.calling_convention_version,
        "program_sha256": hashlib.sha256(data).hexdigest(),
        "config_sha256": hashlib.sha256((folder / CONFIG_FILE).read_bytes()).hexdigest(),
        "attributes": {name: getattr(trained.model, name) for name in ATTRIBUTES[kind]},
        "inputs": {name: _about(leaf) for name, leaf in _inputs(trained).items()},
        "outputs": {name: _about(leaf) for name, leaf in outputs.items()},
        "text_tokenizer": dict(trained.config.data.text_tokenizer), "scaling": _scaling(trained),
        "resize": {name: images.stored_mode(entry.get("features") or {}) for name, entry in trained.datasets.items()},
    })  # fmt: skip


def _lower(trained: TrainedModel, platforms: Sequence[str]) -> jax.export.Exported:
    model = trained.model
    if model.llm.flash:
        model = model.clone(llm=model.llm.clone(flash=False))
    # A symbol in place of a number: one program for every batch size.
    (rows,) = jax.export.symbolic_shape(BATCH)
    open_rows = lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)  # noqa: E731
    batch = {name: open_rows(leaf) for name, leaf in _inputs(trained).items()}
    weights = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
               for name, leaf in tree.flatten(trained.variables).items()}  # fmt: skip

    def predict(weights, batch):
        predicted = model.apply(tree.unflatten(weights), batch, method="predict")
        return {name: predicted[name] for name in OUTPUTS if name in predicted}

    return jax.export.export(jax.jit(predict), platforms=tuple(platforms))(weights, batch)


def _inputs(trained: TrainedModel) -> dict:
    """What is read of a batch of one row; learning needs more."""
    return {name: leaf for name, leaf in trained.model.example(1).items() if name in INPUTS}


def _about(leaf) -> dict:
    return {"shape": [BATCH, *map(int, leaf.shape[1:])], "dtype": str(leaf.dtype)}


def _scaling(trained: TrainedModel) -> dict:
    """{dataset: {column: `Normalizer.to_json()` or None}}: for who runs the program without this package."""
    if trained.kind.name == "latent_policy":
        return {}
    columns = ("action", "state") if trained.model.state_dim else ("action",)
    normalizers = {dataset: {column: trained.normalizer(dataset, column) for column in columns}
             for dataset in trained.datasets}  # fmt: skip
    return {dataset: {column: normalizer and normalizer.to_json() for column, normalizer in entry.items()}
            for dataset, entry in normalizers.items()}  # fmt: skip
