"""Measures a trained latent action model on held-out pairs: `metrics.json`, the images and `report.html`."""

from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.metrics import read_metrics
from lapa_jax.data import pipeline
from lapa_jax.data.samples.meta import statistics_of
from lapa_jax.data.samples.pair_actions import PAIR_ACTION
from lapa_jax.evaluate import report, untrained
from lapa_jax.evaluate.base import METRICS_FILE, REPORT_FILE, BaseEvaluation, data_config
from lapa_jax.evaluate.latent_actions import (
    action_table,
    code_table,
    label_free,
    overview,
    reference,
    sections,
    transfer,
    verdicts,
)
from lapa_jax.evaluate.report import Section
from lapa_jax.models.probe import probe_codes, probe_delta

OVERVIEW_FILE = "overview.png"
PROBE_OF_CODES, PROBE_OF_DELTAS = "action_probe_r2", "action_probe_r2_delta"


class Evaluation(BaseEvaluation):
    """One evaluation: a tokenizer, the held-out pairs, and the folder for the results."""

    FILES = (METRICS_FILE, REPORT_FILE, OVERVIEW_FILE)

    def __init__(self, tokenizer, *, run, out, data=None, split: str | None = None, pairs: int = 2048):
        """Opens the held-out pairs.

        Args:
          tokenizer: a `LatentActionTokenizer`.
          run: where it came from; its `metrics.jsonl`, if any, gives the overview's curves.
          out: the folder to write.
          data: a folder of step shards; the run's own if None.
          split: the split to use; the run's own ("val") if None.
          pairs: how many pairs at most, chosen pseudo-randomly, always the same ones.

        Raises:
          UserError: data that do not exist or do not fit.
        """
        if pairs < 2:
            raise UserError(f"{pairs} pairs are too few: codes are swapped between pairs; give --pairs 2 or more")
        config = data_config(tokenizer.config, data, split, tokenizer.datasets)
        fields = pipeline.eval_fields(config)
        head = tokenizer.model.example(1).get(PAIR_ACTION)
        if data is not None and head is not None and pipeline.action_width(data) != head.shape[-1]:
            # Actions of another robot are none that the head of this run could predict.
            fields = tuple(name for name in fields if name != PAIR_ACTION)
        source = pipeline.build(config, "val", image_size=tokenizer.side, fields=fields,
                                statistics=statistics_of({"datasets": tokenizer.datasets}) or None)  # fmt: skip
        super().__init__(tokenizer, run=run, out=out, data=config, source=source, count=pairs)
        self.has_actions = "net_action" in self.source.fields
        self.as_in_training = data is None and split is None
        self.baselines = (PROBE_OF_CODES, PROBE_OF_DELTAS) if tokenizer.discrete else (PROBE_OF_DELTAS,)
        self.probe = self.baselines[0]

    def write(self, *, reference_steps: int) -> dict:
        """Measures, draws and writes; returns the content of `metrics.json`.

        Args:
          reference_steps: training steps at most of the reference, the same encoder on true actions; 0 leaves it out.
        """
        metrics, arrays = self.measure(self.tokenizer.variables)
        table: dict[str, dict[str, list[float]]] = {}
        of_positions: dict[str, dict[str, float]] = {}
        # Without a probe there is nothing that a baseline or a reference could be compared with.
        if self.probe in metrics:
            metrics |= untrained.probes(self, self.baselines)
            of_reference = None
            if reference_steps:
                train = self.training_pairs()
                trained = reference.scores(self.source, self.tokenizer, steps=reference_steps, limit=self.count,
                                           cache=self.out, train=train)  # fmt: skip
                of_reference = trained.r2
                metrics |= {"action_probe_r2_reference": action_table.mean(of_reference[action_table.ALL]),
                            "reference_steps": float(trained.steps), "reference_stopped": float(trained.stopped),
                            "reference_of_training": float(train is not None)}  # fmt: skip
            table = action_table.measure(arrays, self.source, self.tokenizer.codebook_size, of_reference)
            if self.tokenizer.discrete:
                of_positions = code_table.measure(
                    arrays["codes"], arrays["net_action"], arrays["episode_id"], self.tokenizer.codebook_size
                )
                metrics |= code_table.metrics(of_positions)
            if "mlp" in table:
                metrics["action_probe_r2_mlp"] = action_table.mean(table["mlp"][action_table.ALL])
        if self.tokenizer.predicts_images:
            metrics |= transfer.measure(self.tokenizer, self.batches())
            metrics |= label_free.measure(self.tokenizer, self.batches())
        by_number = {"action_table": {"names": action_table.names_of(self.source), **table}} if table else {}
        by_number |= {"code_table": of_positions} if of_positions else {}
        result = self.save({**self.about(), "pairs": self.count, "metrics": dict(sorted(metrics.items())), **by_number})
        self._report(result["metrics"], arrays, result.get("action_table"), result.get("code_table"))
        return result

    def training_pairs(self):
        """Pairs with their actions of the training split of what is evaluated; None where there is none of use, such as
        video without actions."""
        elsewhere = bool(self.data.get("val_path"))  # evaluated is another folder, with a training split of its own
        data, split = ({**self.data, "split_val": "train"}, "val") if elsewhere else (self.data, "train")
        if self.data["split_val"] == "train" or not pipeline.has_actions(data, split):
            return None
        try:
            pairs = pipeline.build(data, split, image_size=self.tokenizer.side, fields=("frames", "net_action"))
            pairs.batch([0, len(pairs) - 1])
        except UserError:
            return None
        return pairs

    def judge(self, result: Mapping) -> list[verdicts.Verdict]:
        """See `verdicts.judge`."""
        augment = self.tokenizer.config["data"].get("augment") or {}
        return verdicts.judge(result["metrics"], self.tokenizer.codebook_size, mirrored=augment.get("flip", 0) > 0)

    def _report(
        self, metrics: Mapping[str, float | None], arrays: Mapping[str, np.ndarray], table: Mapping | None,
        of_positions: Mapping | None,
    ) -> None:  # fmt: skip
        examples = sections.choose_examples(self.tokenizer, self.source)
        history = read_metrics(self.run)
        overview.draw(self.out / OVERVIEW_FILE, examples, arrays, history)
        about = self.about()
        report.write(
            self.out / REPORT_FILE,
            title=f"Latent actions of {self.run.name}",
            subtitle=f"step {about['step']}, {self.count} pairs of {about['data']} ({about['split']})",
            verdicts=self.judge({"metrics": metrics}),
            **self.head(),
            sections=[
                *sections.draw(examples, arrays, self.out),
                *self._action_sections(arrays, table),
                *([Section("What each code position says", code_table.TEXT, table=code_table.as_rows(of_positions))]
                  if of_positions else []),
                self.course(f"val/{self.probe}"),
                Section("Overview", "The same as one image, with the course of training.", (OVERVIEW_FILE,)),
            ],
        )

    def _action_sections(self, arrays: Mapping[str, np.ndarray], table: Mapping | None) -> list[Section]:
        title = f"What the {'codes' if self.tokenizer.discrete else 'deltas'} say about the action"
        if not self.has_actions:
            return [Section(title, "Unknown: this data has no actions. Give a folder that has them with --data.")]
        actions, episodes, size = arrays["net_action"], arrays["episode_id"], self.tokenizer.codebook_size
        if self.tokenizer.discrete:
            probe = probe_codes(arrays["codes"], actions, episodes, size)
        else:
            probe = probe_delta(arrays["delta"], actions, episodes)
        if probe is None:
            words = (
                "Unknown: the probe is fitted on episodes with an even number and scored on the others, and here one "
            )
            return [Section(title, words + "half is empty or its actions do not vary. Give more held-out episodes.")]
        rows = probe.scored
        shown = {"predicted": probe.prediction[rows], "true": actions[rows], "r2": probe.r2_per_dimension}
        drawn = [sections.draw_probe(title, shown, self.out)]
        if self.tokenizer.discrete:
            drawn.append(sections.draw_actions(arrays["codes"], actions, size, self.out))
        if table is None:
            return drawn
        rows = action_table.as_rows(table, table["names"])
        return [Section("The action, number by number", action_table.TEXT, table=rows), *drawn]
