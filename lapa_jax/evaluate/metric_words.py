"""One sentence for each metric of the reports' tables, by its name; what a kind's own verdicts say comes first."""

import difflib
import re

from lapa_jax.core.errors import UserError

WORDS = {
    "action_mae": "mean absolute error of actions, normalised",
    "action_max_error": "the largest absolute error of actions, normalised",
    "action_mse": "mean squared error of actions, normalised",
    "action_mse_no_prompt": "mean squared error of actions without a prompt",
    "action_mse_wrong_prompt": "mean squared error of actions with the prompt of another task",
    "action_p99_error": "99 % of the absolute errors of actions are below it, normalised",
    "action_distance": "Wasserstein distance between predicted and recorded actions, in standard deviations",
    "action_probe_pairs": "pairs that the probe was fitted on",
    "action_probe_r2": "R² of a linear probe from the codes to the true action",
    "action_probe_r2_delta": "the same probe on the continuous delta, before quantisation",
    "action_r2": "share of the actions' variation that is predicted; 0: as good as always the mean action",
    "bits_per_chunk": "bits that a chunk's codes take",
    "bits_per_row": "bits that a row's codes take",
    "bits_per_step": "bits that a step's codes take",
    "capacity_bits": "the most bits that a continuous delta can say in training, under its noise",
    "clipped": "share of the values that were cut to the range that the codes cover",
    "code_action_bits": "bits that the codes tell of 16 clusters of actions, what seems so by chance among them",
    "code_action_lookup": "share of other episodes' pairs in the cluster that is most frequent with their codes",
    "code_action_majority": "share of these pairs with the most frequent cluster of all",
    "code_action_nmi": "these bits beyond chance as a share of the entropies, 0 to 1; adjusted mutual information",
    "code_action_variance_left": "share of the actions' variance among pairs with the same codes; 1: they say nothing",
    "codebook_utilization": "share of the codes that occur",
    "collapse": "1: one code takes more than 90 % at some code position; a mean over several datasets",
    "composite": "the weighted sum by which the best checkpoint is chosen; higher is better",
    "constants_moved": "share of rows in which a constant feature has another value",
    "cycle_consistency": "share of codes that come back when the first frame and the prediction are encoded",
    "cycle_delta_r2": "R² of the deltas that come back when the first frame and the prediction are encoded",
    "dead_codes": "codes that never occur, over all code positions",
    "entropy_per_row": "bits that a row's codes need if the frequent ones are written shorter",
    "episode_accuracy_chance": "accuracy of telling episodes apart by guessing",
    "feature_mae": "mean absolute error of features, normalised",
    "feature_mse": "mean squared error of features, normalised",
    "feature_probe_pairs": "pairs that the probe of features was fitted on",
    "feature_probe_r2": "R² of a linear probe from how the mean features of each quarter change to the true action",
    "feature_r2": "share of the features' variation that is reconstructed",
    "gripper_accuracy": "share of the gripper's steps on the right side",
    "identical_frame_agreement": "share of the most frequent code for pairs of equal frames; 1: all have the same",
    "identical_frame_psnr": "PSNR in dB for pairs of equal frames",
    "largest_code_share": "share of the most frequent code, where it is largest",
    "latent_accuracy": "share of the codes that are predicted",
    "latent_accuracy_shuffled_image": "the same with the image of another episode",
    "latent_accuracy_shuffled_text": "the same with the instruction of another sample",
    "latent_distance": "Wasserstein distance between predicted and true deltas, in standard deviations",
    "latent_mae": "mean absolute error of deltas, normalised",
    "latent_max_error": "the largest absolute error of deltas, normalised",
    "latent_mse": "mean squared error of deltas, normalised",
    "latent_mse_mean": "mean squared error of always giving the mean delta, normalised",
    "latent_orthogonality": "root mean squared correlation between latents of different categories; 0: independent",
    "latent_p99_error": "99 % of the absolute errors of deltas are below it, normalised",
    "latent_r2": "share of the deltas' variation that is predicted; 0: as good as always the mean delta",
    "latent_r2_shuffled_image": "the same with the image of another episode",
    "latent_r2_shuffled_text": "the same with the instruction of another sample",
    "level_utilization": "share of the levels of each quantised number that occur",
    "loss": "the loss of training, on held-out samples",
    "mae": "mean absolute error, normalised",
    "masked_r2": "share of what hidden patches show besides their mean colour that is predicted from the others",
    "mse": "mean squared error, normalised",
    "orthogonality": "the largest correlation between the centroids of two categories; 0: independent",
    "one_frame_r2": "R² of a linear model from the second frame alone to the deltas: how much of them is a place",
    "perplexity": "effective number of codes in use at a code position",
    "perplexity_least": "perplexity of the code position that uses the fewest codes",
    "perplexity_share": "perplexity as a share of the codebook's size",
    "psnr": "PSNR in dB of the predicted second frame",
    "psnr_gain": "gain in dB over copying the first frame",
    "quality": "1 - mean squared error, between 0 and 1",
    "quality_worst_category": "the same of the category that is worst",
    "r2": "share of the variation that is reconstructed",
    "receptive_field": "steps that a code depends on",
    "reversal_correlation": "correlation of the deltas of a pair and of its reverse; -1: they turn with the motion",
    "reversal_r2": "R² of a linear model from the deltas to those of the reversed pair",
    "sequence_perplexity": "effective number of code combinations",
    "sequences_used": "number of code combinations that occur",
    "ssim": "structural similarity of the predicted second frame",
    "swap_gap": "growth of the error with the codes of another pair; 0: the decoder ignores the codes",
    "swap_gap_same_place": "the same with those of another episode's pair that ends in the most similar image",
    "tokens_per_chunk": "codes that stand for a chunk",
    "topo": "rank correlation of distances between features and distances between codes",
    "topo_post": "rank correlation of distances between latents before and after quantisation",
    "topo_pre": "rank correlation of distances between features and latents",
    "transfer_action_r2": "R² of the probe from the codes that come back from other episodes",
    "transfer_chance": "share of these codes that the other episode's own pair has anyway",
    "transfer_delta_chance": "R² of the other episode's own deltas as such a guess, about -1",
    "transfer_delta_r2": "R² of the deltas that come back when they are applied to another episode's first frame",
    "transfer_consistency": "share of codes that come back when they are applied to another episode's first frame",
    "view_consistency": "share of codes that stay when both frames are shifted alike by up to an eighth of their side",
    "view_delta_r2": "R² of the deltas of frames that are shifted alike by up to an eighth of their side",
}  # fmt: skip

_PARTS = re.compile(r"(?P<whole>.+?)_(?P<part>position_\d+|category_\d+_level_\d+|level_\d+|\d+|[qz])")
_ALIASES = {"utilization": "codebook_utilization"}


def is_part(metric: str) -> bool:
    """Whether a metric is that of one dataset, code position, level or dimension, beside one of all of them."""
    return "/" in metric or bool(_PARTS.fullmatch(metric))


def check_logged(metric: str, option: str) -> None:
    """Refuses what is surely no metric that evaluations in training log, before anything is trained.

    Models of one's own have metrics that stand nowhere here, so that only names close to a known one are misspelled.

    Args: metric: such as "val/psnr_gain". option: that names it, for the message.

    Raises:
      UserError: it lacks "val/", or is misspelled.
    """
    prefix, _, name = metric.partition("/")
    if prefix != "val":
        raise UserError(f"{option} '{metric}': evaluations in training log their metrics under val/; give "
                        f"val/{_corrected(metric) or metric}")  # fmt: skip
    if not of(name) and (close := _corrected(name)):
        raise UserError(f"{option} '{metric}' is no metric of an evaluation; did you mean 'val/{close}'?")


def _corrected(name: str) -> str | None:
    """The known metric that a name nearly is, else None."""
    return next(iter(difflib.get_close_matches(name, WORDS, n=1, cutoff=0.85)), None)


def of(metric: str) -> str:
    """What a metric says; "" of an unknown one.

    Args:
      metric: as in `metrics.json`: "psnr", "perplexity_position_2", "bridge/action_mse_0", "loss_commitment".
    """
    dataset, _, name = metric.rpartition("/")
    match = _PARTS.fullmatch(name)
    if match and name not in WORDS:
        whole, part = match["whole"], match["part"].replace("_", " ")
        words = WORDS.get(_ALIASES.get(whole, whole), "")
        words = words and f"{words}: {f'dimension {part}' if part.isdigit() else part}"
    elif name.startswith("loss_") and name not in WORDS:
        words = f"the term {name.removeprefix('loss_').replace('_', ' ')} of the loss"
    else:
        words = WORDS.get(name, "")
    return f"{dataset}: {words}" if dataset and words else words
