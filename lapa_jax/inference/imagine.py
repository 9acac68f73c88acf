"""What a policy of latent actions means to do, as images: its codes, drawn by the decoder of their tokenizer."""

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.inference.latent_action_tokenizer import LatentActionTokenizer
from lapa_jax.inference.policies import LatentPolicy


def imagine(
    policy: LatentPolicy, tokenizer: LatentActionTokenizer, image, instruction
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The predicted codes and the next frame that they lead to.

    Args:
      policy: of latent actions. tokenizer: the one whose codes it predicts, such as LAPA-7B's, `laq_openx.pt`.
      image: uint8 [B, H, W, 3] or a single one, of one camera. instruction: B texts, or one for all.

    Returns:
      Codes int32 [B, N], and frames f32 [B, h, w, 3] in [0, 1] at the tokenizer's size; without B for a single image.

    Raises:
      UserError: the tokenizer has other codes, or predicts no images.
    """
    check(policy, tokenizer)
    codes = policy.predict(image, instruction)
    return codes, frames(tokenizer, np.asarray(image), codes)


def frames(tokenizer: LatentActionTokenizer, image: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The frames f32 in [0, 1] that codes int [B, N] or [N] lead to from images uint8 [B, H, W, 3] or [H, W, 3]."""
    return np.clip(tokenizer.decode(image, codes), 0, 1)


def rollout(tokenizer: LatentActionTokenizer, image: np.ndarray, actions) -> np.ndarray:
    """What a sequence of latent actions leads to: each predicted frame is the first frame of the next.

    Errors of the decoder add up, so that frames far ahead are blurred.

    Args:
      tokenizer: that predicts images. image: uint8 [H, W, 3] or f32 in [0, 1], as of `encode`; the first frame.
      actions: T sequences of N codes each.

    Returns:
      f32 [T, h, w, 3] in [0, 1], the frame after each action.
    """
    shown = []
    for codes in actions:
        image = frames(tokenizer, image, np.asarray(codes))
        shown.append(image)
    return np.stack(shown) if shown else np.zeros((0, *tokenizer.image_size, 3), np.float32)


def check(policy: LatentPolicy, tokenizer) -> None:
    """Refuses a tokenizer whose codes a policy does not predict, or that gives no images."""
    name = tokenizer.config.model.name
    if tokenizer.kind.name != "frame_pair_tokenizer":
        raise UserError(f"a {name} is no tokenizer of frame pairs; give the run whose codes the policy predicts")
    if not tokenizer.predicts_images:
        raise UserError(f"a {name} of features predicts no images; there is nothing to show")
    if not tokenizer.discrete:
        raise UserError("the tokenizer has no codes (model.quantizer 'none'), and the policy predicts some; give the "
                        "run whose codes it predicts")  # fmt: skip
    ours = policy.model.code_length, policy.model.codebook_size
    theirs = tokenizer.code_length, tokenizer.codebook_size
    if ours != theirs:
        raise UserError(f"the policy predicts {ours[0]} of {ours[1]} codes, the tokenizer has {theirs[0]} of "
                        f"{theirs[1]}; give the run whose codes it predicts")  # fmt: skip
    made = (policy.labels or {}).get("tokenizer")
    if made is not None and made != tokenizer.fingerprint:
        raise UserError(f"the policy learned codes of tokenizer {made[:12]}, this one is {tokenizer.fingerprint[:12]}; "
                        "codes of two tokenizers mean different things")  # fmt: skip
