"""Measures a stage-2 policy on held-out steps: how often it gives the right codes, and whether it looks and listens.
`metrics.json`, images and `report.html`."""

from collections.abc import Iterator, Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.data.samples.meta import statistics_of
from lapa_jax.evaluate import report
from lapa_jax.evaluate.base import REPORT_FILE, BaseEvaluation, data_config
from lapa_jax.evaluate.report import GOOD, NOTE, POOR, Section, Verdict
from lapa_jax.inference import imagine
from lapa_jax.inference.load import load
from lapa_jax.plots import latent_policy, training

MIN_GAIN, MIN_USE = 0.15, 0.01
SHUFFLED = {"text": ("text", "text_mask"), "image": ("image",)}
"""What is exchanged between samples: instructions, or images."""
EXAMPLES = 8
CONFUSION_FILE, EXAMPLES_FILE = "confusion.png", "examples.png"
IMAGINED_FILE = "imagined.png"


class Evaluation(BaseEvaluation):
    """One evaluation of a `LatentPolicy`.

    Attributes: MEASURE: the metric that must suffer where instructions or images are exchanged.
    """

    MEASURE = "latent_accuracy"

    def __init__(
        self, policy, *, run, out, data=None, split: str | None = None, pairs: int = 2048, labels=None, tokenizer=None
    ):  # fmt: skip
        """Opens the held-out steps.

        Args:
          policy: a `LatentPolicy`. run: where it came from. out: the folder to write.
          data: a folder of step shards; the run's own if None. split: of it; the run's own ("val") if None.
          pairs: how many steps at most, chosen pseudo-randomly, always the same ones.
          labels: the latents of `data`, by the tokenizer of the run's own; None for those that `data` hold.
          tokenizer: the run of the latent action tokenizer whose codes the policy predicts, to show where they lead.

        Raises:
          UserError: data, labels or a tokenizer that do not exist or do not fit.
        """
        self._decoder = None
        if tokenizer is not None:
            self._decoder = load(tokenizer)
            imagine.check(policy, self._decoder)
        config = data_config(policy.config, data, split, policy.datasets)
        if data is not None:
            config["val_labels"] = config["labels"] = labels
            # Codes of another tokenizer are small integers too, and would be compared without an error.
            config["labels_tokenizer"] = (policy.labels or {}).get("tokenizer")
        elif labels is not None:
            raise UserError(f"--labels {labels} goes with --data; the run's own data have theirs")
        # Deltas are scaled as in training; codes need no statistics.
        statistics = statistics_of({"datasets": policy.datasets}) or None
        source = pipeline.build(config, "val", statistics=statistics)
        super().__init__(policy, run=run, out=out, data=config, source=source, count=pairs)

    def write(self) -> dict:
        """Measures, draws and writes; returns the content of `metrics.json`.

        Its "metrics" are those that training logs under "val/", and "latent_accuracy_shuffled_text" and
        "..._shuffled_image": with the instruction of a sample that has another one, and with the image of another
        episode. "text_use" and "image_use" are what that costs.
        """
        metrics, arrays = self.measure(self.tokenizer.variables)
        samples = list(self.batches())
        for what, fields in SHUFFLED.items():
            if exchanged := list(shuffled(samples, what, fields)):
                shuffled_metrics, _ = self._evaluator(self.tokenizer.variables, exchanged)
                metrics[f"{self.MEASURE}_shuffled_{what}"] = shuffled_metrics[self.MEASURE]
                metrics[f"{what}_use"] = metrics[self.MEASURE] - shuffled_metrics[self.MEASURE]
        about = self.about()
        about["policy"], about["labels"] = about.pop("tokenizer"), (self.tokenizer.labels or {}).get("tokenizer")
        result = self.save({**about, "samples": self.count, "metrics": dict(sorted(metrics.items()))})
        report.write(
            self.out / REPORT_FILE, title=f"Latent actions that {self.run.name} predicts",
            subtitle=f"step {about['step']}, {self.count} steps of {about['data']} ({about['split']})",
            verdicts=self.judge(result), sections=self._sections(arrays, samples), note=_NOTE, **self.head(),
        )  # fmt: skip
        return result

    def judge(self, result: Mapping) -> list[Verdict]:
        """What the numbers mean, the most telling first."""
        metrics = result["metrics"]
        levels = {"accuracy_gain": MIN_GAIN, "text_use": MIN_USE, "image_use": MIN_USE}
        lines = []
        for name, words in _WORDS.items():
            if metrics.get(name) is not None:
                level = NOTE if name not in levels else GOOD if metrics[name] >= levels[name] else POOR
                shown = f"{metrics[name]:.3f}" if name.startswith("loss") else f"{metrics[name]:+.1%}" \
                    if name in levels else f"{metrics[name]:.1%}"  # fmt: skip
                lines.append(Verdict(name, shown, level, words))
        return lines

    def _sections(self, arrays: Mapping[str, np.ndarray], samples: list[dict]) -> list[Section]:
        size = self.tokenizer.model.codebook_size
        kept = arrays["latent_mask"] > 0
        training.confusion(self.out / CONFUSION_FILE, arrays["codes"][kept], arrays["predicted"][kept], size)
        latent_policy.examples(self.out / EXAMPLES_FILE, self._examples(arrays, samples))
        return [
            Section("What it sees and predicts", _EXAMPLES, (EXAMPLES_FILE,)),
            *self._imagined(arrays, samples),
            Section("Right and wrong codes", _CONFUSION, (CONFUSION_FILE,)),
            self.course("val/latent_accuracy"),
        ]

    def _imagined(self, arrays: Mapping[str, np.ndarray], samples: list[dict]) -> list[Section]:
        """The frames that the predicted and the true codes lead to, where their tokenizer is known."""
        if self._decoder is None:
            return []
        rows = self._examples(arrays, samples)
        images = np.stack([row["image"] for row in rows])
        columns = {"what the policy sees": self.tokenizer.seen(images)} if self.tokenizer.model.cameras == 1 else {}
        for title, name in (("predicted", "predicted"), ("true codes", "codes")):
            codes = np.stack([row[name] for row in rows])
            columns[title] = imagine.frames(self._decoder, images, codes)
        shown = [{"image": row["image"], "instruction": row["instruction"]} for row in rows]
        for name, drawn in columns.items():
            shown = [{**row, name: image} for row, image in zip(shown, drawn)]
        latent_policy.imagined(self.out / IMAGINED_FILE, shown)
        return [Section("Where the codes lead", _IMAGINED, (IMAGINED_FILE,))]

    def _examples(self, arrays: Mapping[str, np.ndarray], samples: list[dict]) -> list[dict]:
        """The best and the worst predicted ones, each of another episode."""
        images, texts = (np.concatenate([b[name][b["mask"] > 0] for b in samples]) for name in ("image", "text"))
        episode = np.concatenate([b["episode_id"][b["mask"] > 0] for b in samples])
        order = np.argsort(arrays["loss"].mean(1), kind="stable")
        chosen = []
        for side in (order, order[::-1]):
            seen = {}
            for row in side[arrays["latent_mask"][side] > 0].tolist():
                # One of each episode: neighbouring steps look alike.
                seen.setdefault(int(episode[row]), row)
            chosen += list(seen.values())[: EXAMPLES // 2]
        instruction = self.tokenizer.tokenizer.instruction
        return [{"image": images[i] if images.ndim == 4 else images[i, 0], "instruction": instruction(texts[i]),
                 "codes": arrays["codes"][i], "predicted": arrays["predicted"][i]} for i in chosen]  # fmt: skip


def shuffled(samples: list[dict], what: str, fields: tuple[str, ...]) -> Iterator[dict]:
    """The batches with fields exchanged between samples of different instructions ("text") or episodes ("image").

    Yields nothing where all samples are of one kind.
    """
    real = np.concatenate([batch["mask"] > 0 for batch in samples])
    rows = {name: np.concatenate([batch[name] for batch in samples]) for name in (*fields, "text", "episode_id")}
    kinds = rows["text"] if what == "text" else rows["episode_id"][:, None]
    partner = np.arange(len(real))
    partner[real] = np.flatnonzero(real)[partners(np.unique(kinds[real], axis=0, return_inverse=True)[1].ravel())]
    if (partner[real] == np.flatnonzero(real)).all():
        return
    start = 0
    for batch in samples:
        partners_of_batch = partner[start : start + len(batch["mask"])]
        start += len(partners_of_batch)
        yield {**batch, **{name: rows[name][partners_of_batch] for name in fields}}


def partners(kinds: np.ndarray, seed: int = 0) -> np.ndarray:
    """A permutation int[N] that gives every sample one of another kind, as far as no kind is more than half of all.

    Sorted by kind and moved by the size of the largest, no kind meets itself; the order of the kinds, and of the
    samples within them, is random. With a single kind nothing moves.
    """
    sizes = np.bincount(kinds)
    if (sizes > 0).sum() < 2:
        return np.arange(len(kinds))
    rng = np.random.default_rng(seed)
    # lexsort's last key is the first to sort by: kinds in random order, and within each its samples in random order.
    order = np.lexsort((rng.permutation(len(kinds)), rng.permutation(len(sizes))[kinds]))
    partner = np.empty(len(kinds), np.int64)
    partner[order] = order[(np.arange(len(kinds)) + sizes.max()) % len(kinds)]
    return partner


_NOTE = "Held-out episodes. Steps whose frame pair was cut short by the end of the episode do not count."
_EXAMPLES = ("Of different episodes, first those whose true codes the policy thought the most likely, then those that "
             "it thought the least likely. Wrong codes are red.")  # fmt: skip
_IMAGINED = ("The same examples: the image, what is left of it for the policy, and the next frame that the tokenizer "
             "draws from the image and codes, those that the policy predicts and the true ones.")  # fmt: skip
_CONFUSION = ("For each code position: of the steps with a code (row), the share for which each code was predicted "
              "(column). A dark diagonal is good, a dark column is a code that is given whatever is seen.")  # fmt: skip
_WORDS = {
    "accuracy_gain": "points over always giving the most frequent code of each position",
    "latent_accuracy": "of the codes are predicted",
    "majority_accuracy": "would be right by always giving the most frequent code",
    "latent_accuracy_top3": "of the codes are among the three most likely",
    "majority_accuracy_top3": "would be among the three most frequent ones",
    "text_use": "points are lost with the instruction of another sample: how much it listens",
    "image_use": "points are lost with the image of another episode: how much it looks",
    "latent_accuracy_all": "of the steps have every code right",
    "loss": "nats a code",
    "loss_unigram": "nats a code, for the frequencies of the codes alone",
}
