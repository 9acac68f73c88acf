"""What a vision-language-action model takes of its data: sizes of pictures and texts, the vocabulary, the codes."""

from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError


def body_from_data(spec: Mapping, source) -> dict:
    """Fills in `image_size`, `cameras`, `text_length` and the decoder's `vocab` where they are None.

    Args:
      spec: the model's fields. source: samples with "image" and tokens as "text".

    Raises:
      UserError: the samples do not fit the fields.
    """
    batch = source.batch([])
    if missing := sorted({"image", "text"} - set(batch)):
        raise UserError(f"{spec['name']} needs {' and '.join(missing)} of each step; name them in data.fields")
    if source.vocabulary is None:
        raise UserError('the instructions are no tokens; set data.text_tokenizer, {"name": "bytes"} for one')
    image = batch["image"].shape[1:]
    if image[-2] != image[-3]:
        raise UserError(f"the pictures are {image[-3]}x{image[-2]}; the towers take square ones: set data.image_size")
    found = {"image_size": image[-2], "cameras": image[0] if len(image) == 4 else 1,
             "text_length": batch["text"].shape[1]}  # fmt: skip
    filled = {**spec, **agree(spec, found)}
    return {**filled, "llm": {**spec["llm"], "vocab": _vocabulary(spec["llm"].get("vocab"), source.vocabulary)}}


def latent_from_data(spec: Mapping, source) -> dict:
    """Fills in `code_length` and `codebook_size` where they are None, as the labels tell.

    Raises:
      UserError: no labels, places with different numbers of codes, or fields that say otherwise.
    """
    batch = source.batch([])
    if "latent" not in batch:
        raise UserError(f"{spec['name']} learns latent actions; name 'latent' in data.fields and set data.labels to "
                        "what launch/label.py wrote")
    found, sizes = {"code_length": batch["latent"].shape[1]}, (source.label_info or {}).get("codebook_size")
    if sizes is not None:
        if len(different := sorted(set(np.ravel(sizes).tolist()))) > 1:
            raise UserError(f"the labels have codebooks of {different} codes; the head needs one size for all places")
        found["codebook_size"] = different[0]
    elif spec.get("codebook_size") is None:
        raise UserError("nothing says of how many codes the latents are: set model.codebook_size")
    return agree(spec, found)


def agree(spec: Mapping, found: Mapping) -> dict:
    """What was found; a UserError where a field is set to something else."""
    for name, value in found.items():
        if spec.get(name) not in (None, value):
            raise UserError(f"model.{name} is {spec[name]}, the data have {value}; leave it None, or change the data")
    return dict(found)


def _vocabulary(given: int | None, needed: int) -> int:
    if given is not None and given < needed:
        raise UserError(f"model.llm.vocab is {given}, the tokenizer has {needed} tokens; give data.text_tokenizer the "
                        "one that belongs to the weights")
    return given or needed
