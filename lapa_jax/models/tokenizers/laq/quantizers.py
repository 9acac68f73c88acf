"""The quantisers that a latent action model of frame pairs (`FramePairModel`) may have, chosen by its fields."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from lapa_jax.core.errors import UserError
from lapa_jax.nn.quantizers import replacement as rules
from lapa_jax.nn.quantizers.fsq import FSQ
from lapa_jax.nn.quantizers.nsvq import NSVQ
from lapa_jax.nn.quantizers.unrounded import Unrounded, capacity
from lapa_jax.nn.quantizers.vq import VQ

CODEBOOK = "quantizer/codebook"
Quantizer = Literal["nsvq", "vq", "fsq", "none"]
CodebookInit = Literal["normal", "data"]
Replacement = Literal["official", "share", "residual", "none"]


def build(model, name: str | None = None) -> NSVQ | FSQ | VQ | Unrounded:
    """The quantiser of a model; within `setup` a submodule of this name."""
    if model.quantizer == "none":
        return Unrounded(model.delta_noise, name=name)
    if model.quantizer == "nsvq":
        return NSVQ(model.codebook_size, model.codebook_init, name=name)
    if model.quantizer == "fsq":
        return FSQ(model.levels)
    # VQ counts its share relative to the mean of all codes, the field to all vectors.
    dead_share = model.replacement_min_share * model.codebook_size if model.replacement == "share" else 0.0
    return VQ(
        model.codebook_size, update=model.codebook_update, decay=model.codebook_decay,
        positions=model.code_seq_len if model.codebook_per_position else 1, codebook_init=model.codebook_init,
        dead_share=dead_share, name=name,
    )  # fmt: skip


def apply(quantizer: NSVQ | FSQ | VQ | Unrounded, delta: jax.Array, *, train: bool):
    """Deltas f32 [B, N, Q] -> action vectors, codes i32 [B, N] or None where nothing is rounded, losses "codebook" and
    "commitment" f32 [B], metrics."""
    none = {name: jnp.zeros(len(delta), jnp.float32) for name in ("codebook", "commitment")}
    if isinstance(quantizer, VQ):
        return quantizer(delta, train=train)
    if isinstance(quantizer, FSQ):
        return *quantizer(delta), none, {}
    if isinstance(quantizer, Unrounded):
        return quantizer(delta, train=train), None, none, {}
    action, codes, metrics = quantizer(delta, train=train)
    return action, codes, none, metrics


def capacity_bits(model) -> dict[str, float]:
    """{"capacity_bits": the most that a delta can say in training} of a model without codes and with noise; else {}."""
    if model.quantizer != "none" or not model.delta_noise:
        return {}
    return {"capacity_bits": model.code_seq_len * model.quant_dim * capacity(model.delta_noise)}


def replace_dead(model, variables, *, step: jax.Array, rng: jax.Array):
    """`after_update` of a model: NSVQ's dead codes are replaced when the schedule says so; others look after theirs."""
    if model.quantizer != "nsvq" or model.replacement == "none":
        return variables, {}
    quantizer, counts = variables["params"]["quantizer"], variables["codebook"]["quantizer"]
    codes, counts, replaced = rules.maybe_replace(
        model.replacement, quantizer["codebook"], counts, step=step, rng=rng, schedule=model.replacement_schedule,
        min_hits=model.replacement_min_hits, min_share=model.replacement_min_share,
    )  # fmt: skip
    params = {**variables["params"], "quantizer": {**quantizer, "codebook": codes}}
    state = {**variables["codebook"], "quantizer": counts}
    # Optimizer moments of a replaced code belong to the code that was there, hence the mask.
    return {**variables, "params": params, "codebook": state}, {CODEBOOK: replaced[:, None]}


def check(model) -> None:
    """Raises UserError for fields that make no quantiser, with what to change."""
    rules.check_schedule(model.replacement_schedule)
    _check_levels(model)
    if model.quantizer != "vq" and model.codebook_per_position:
        raise UserError(f"codebook_per_position needs quantizer 'vq', and this is '{model.quantizer}'")
    allowed = _replacements(model)
    if model.replacement not in allowed:
        update = f" with codebook_update '{model.codebook_update}'" if model.quantizer == "vq" else ""
        raise UserError(f"replacement '{model.replacement}' is not for quantizer '{model.quantizer}'{update}; "
                        f"set it to {' or '.join(map(repr, allowed))}")
    if model.quantizer == "none" and model.delta_noise and model.delta_norm == "none":
        # Under noise of a fixed size an encoder of any size would only have to make larger deltas.
        raise UserError(f"quantizer 'none' with delta_noise {model.delta_noise} needs deltas of a bounded size, and "
                        "delta_norm is 'none'; set it to 'whitened' or 'running_per_position', or delta_noise to 0")
    if model.quantizer == "vq":
        if model.replacement_min_share * model.codebook_size >= 1:
            raise UserError(f"replacement_min_share {model.replacement_min_share} is more than the mean share of "
                            f"{model.codebook_size} codes; give less than {1 / model.codebook_size:g}")
        build(model).check()


def _check_levels(model) -> None:
    """The levels of FSQ make the codes that the other fields promise; others have none."""
    levels = model.levels
    if model.quantizer == "fsq":
        FSQ(levels).check()
        size, width = math.prod(levels), len(levels)
        if (size, width) != (model.codebook_size, model.quant_dim):
            raise UserError(f"levels {levels} make {size} codes of {width} features; set codebook_size to "
                            f"{size} (now {model.codebook_size}) and quant_dim to {width} (now {model.quant_dim})")
    elif levels:
        raise UserError(f"levels {levels} are for quantizer 'fsq', and this is '{model.quantizer}'; leave them ()")


def _replacements(model) -> tuple[str, ...]:
    """The rules for dead codes that a quantiser can have; without codes none of them does anything."""
    if model.quantizer in ("nsvq", "none"):
        return rules.REPLACEMENTS
    return ("none", "share") if (model.quantizer, model.codebook_update) == ("vq", "ema") else ("none",)
