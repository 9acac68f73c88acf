"""The run of a conversion, start to end; see `convert`."""

import contextlib
import dataclasses
import itertools
import pathlib
import shutil
from collections import Counter
from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json, write_json
from lapa_jax.core.progress import bar
from lapa_jax.data import images
from lapa_jax.data.convert import filter as filtering
from lapa_jax.data.convert import plan as planning
from lapa_jax.data.convert.duplicates import Duplicates
from lapa_jax.data.convert.filter import Filter
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.pack import Packer
from lapa_jax.data.convert.parts import Job, read_part, remove_part
from lapa_jax.data.convert.pool import PATIENCE, call, run_jobs
from lapa_jax.data.convert.share_lock import no_other
from lapa_jax.data.convert.totals import Totals
from lapa_jax.data.far_values import far_values
from lapa_jax.data.formats.base import COLUMNS
from lapa_jax.data.samples.meta import dimension_names
from lapa_jax.data.shards import step_shards
from lapa_jax.data.shards.table import Table, open_table
from lapa_jax.data.statistics import column_statistics

REPORT = "report.json"
FILTERED, SHOWN = "filter.json", 60
"""What `--filter` did, and how many of its deeds of a kind are shown."""
RECORDED = "episodes.jsonl"
"""The table of episodes that `tools/record_sim.py` writes beside its videos."""


def convert(
    source: pathlib.Path,
    out: pathlib.Path,
    options: Options,
    workers: int = 0,
    *,
    max_errors: int = 0,
    max_missing: int | None = None,
    episode_timeout: float = PATIENCE,
) -> dict:
    """Converts a dataset to step shards, or finishes a conversion that was interrupted.

    Args:
      source: a folder, or a file where the format has one.
      out: a new folder, or that of the same conversion.
      options: what decides the content.
      workers: processes; 0 works in this one.
      max_errors: unreadable episodes that are tolerated; more fail the run after everything else has been converted.
      max_missing: episodes that the source's own tables list and that are not there; None tolerates any number.
      episode_timeout: seconds after which a worker counts as hanging.

    Returns:
      The report, also written to `report.json`: {"episodes", "steps", "errors": [{"path", "error"}], "missing", ...};
      "finished" tells whether the output had been there already.
    """
    planning.check_folders(source, out)
    plan = call(planning.make_plan, source, out, with_captions(source, options), workers=workers)
    if max_missing is not None and len(plan["missing"]) > max_missing:
        path, why = plan["missing"][0]
        raise UserError(
            f"{source} lacks {len(plan['missing'])} episodes that it lists, --max_missing is {max_missing}; the first: "
            f"{path}: {why}"
        )
    work = out / step_shards.WORK
    if (out / step_shards.DATASET).exists():
        return already_finished(out, plan)
    (work / "parts").mkdir(parents=True, exist_ok=True)
    with no_other(work):
        conversion = _Conversion(source, out, with_captions(source, options), plan)
        try:
            return conversion.run(workers, max_errors, episode_timeout)
        except KeyboardInterrupt:
            conversion.clean()  # its workers were killed
            raise


def with_captions(source: pathlib.Path, options: Options) -> Options:
    """The options with the table of episodes that a recording carries, where no other is named."""
    table = source / RECORDED
    if options.captions is None and options.format in ("auto", "video") and table.is_file():
        return dataclasses.replace(options, captions=str(table))
    return options


def already_finished(out: pathlib.Path, plan: dict) -> dict:
    """The report of a conversion that is done; a `UserError` where it is another one."""
    source = step_shards.read_dataset(out)["source"]
    if source.get("plan") != planning.digest(plan):
        before, now = source.get("options", {}), plan["options"]
        changed = [f"--{k} was {before.get(k)}, now {now[k]}" for k in now if before.get(k) != now[k]]
        what = changed[0] if changed else "the source or its captions have changed since"
        raise UserError(f"{out} holds a finished conversion with another plan: {what}; choose another output")
    shutil.rmtree(out / step_shards.WORK, ignore_errors=True)
    return {**read_json(out / REPORT), "finished": True}


def _far_values(features: dict, statistics: dict) -> dict[str, list[str]]:
    """{column: dimensions with values far out, in words}, under the scaling that configs have."""
    texts = {}
    for name, summary in statistics.items():
        names = dimension_names(features[name], len(summary["mean"]))
        if far := far_values(summary, "q01_q99", names):
            texts[name] = [one.text for one in far]
    return texts


class _Conversion:
    def __init__(self, source: pathlib.Path, out: pathlib.Path, options: Options, plan: dict):
        self.source, self.out, self.work, self.plan = source, out, out / step_shards.WORK, plan
        self.parts = self.work / "parts"
        self.options = options.for_readers()
        self.clean()
        self.packers = []
        for split in ("train", "val"):
            ids = [e["id"] for e in plan["episodes"] if e["split"] == split]
            if ids:
                self.packers.append(Packer(out, self.work, split, ids, plan["options"]))
        self.errors = {k: v for packer in self.packers for k, v in packer.errors().items()}
        self.filter = Filter.parse(options.filter)
        self._check_plan()
        self.duplicates = self._duplicates()

    def _duplicates(self) -> Duplicates:
        entries = [entry for packer in self.packers for entry in packer.journal]
        settled = {episode: [] for entry in entries for episode in (*entry["episodes"], *entry["errors"])}
        settled |= {episode: pieces for entry in entries for episode, pieces in entry["pieces"].items()}
        distance = self.filter.duplicates if self.filter else None
        ids = [entry["id"] for entry in self.plan["episodes"]]
        return Duplicates(ids, distance, settled, lambda episode: read_part(self.parts, episode))

    def clean(self) -> None:
        """Removes what a killed run or worker has left half-written: temporary files, and parts without their JSON."""
        for folder in (self.out, self.work, self.parts):
            for path in folder.glob(".*.tmp"):
                path.unlink()
        for path in self.parts.glob("*.part"):
            if read_part(self.parts, path.stem) is None:
                path.unlink()

    def _check_plan(self) -> None:
        settled = set().union(*(packer.settled() for packer in self.packers))
        planning.pin(self.work, self.plan, settled | {path.stem for path in self.parts.glob("*.json")})

    def run(self, workers: int, max_errors: int, patience: float) -> dict:
        settled = set().union(*(packer.settled() for packer in self.packers))
        waiting = [e for e in self.plan["episodes"] if e["id"] not in settled and not read_part(self.parts, e["id"])]
        shared = {key: self.plan[key] for key in ("format", "options", "columns", "cameras", "not_colour")}
        jobs = (Job(str(self.source), str(self.parts), shared, self.options, e) for e in waiting)
        total = len(self.plan["episodes"])
        shown = bar(total=total, initial=total - len(waiting), desc="convert", unit="episode")
        # Closed: the workers have ended when this is left, however it is left.
        with shown as progress, contextlib.closing(run_jobs(jobs, workers, patience)) as finished:
            self._pack(max_errors)
            for job, failure in finished:
                if failure:
                    self.errors[failure.id] = failure.error
                    remove_part(self.parts, job.entry["id"])
                progress.update()
                self._pack(max_errors)
        report = self._report()
        write_json(self.out / REPORT, report)
        self._judge(report, max_errors)
        return {**self._finish(report), "finished": False}

    def _pack(self, max_errors: int) -> None:
        for packer in self.packers:
            packer.advance(self.errors, len(self.errors) <= max_errors, self.duplicates)

    def _judge(self, report: dict, max_errors: int) -> None:
        if len(self.errors) > max_errors:
            first = report["errors"][0]
            raise UserError(
                f"{len(self.errors)} of {len(self.plan['episodes'])} episodes cannot be read, --max_errors is "
                f"{max_errors}; the first: {first['path']}: {first['error']}. All are listed in {self.out / REPORT}; "
                "mend or remove them, or raise --max_errors, and run again: finished work is kept"
            )
        if not report["steps"] and report["filter"]:
            raise UserError(f"--filter leaves nothing of {self.source}; see {self.out / REPORT}, choose other rules")
        if not report["steps"]:
            raise UserError(f"no episode of {self.source} could be converted; see {self.out / REPORT}")

    def _report(self) -> dict:
        totals, plan = self._totals(), self.plan
        places = {e["id"]: planning.place_of(e) for e in plan["episodes"]}
        errors = [{"path": places[k], "error": v} for k, v in self.errors.items()]
        return {
            "format": plan["format"],
            "episodes": totals.episodes,
            "steps": totals.steps,
            "errors": sorted(errors, key=lambda e: e["path"]),
            "missing": [{"path": path, "error": why} for path, why in plan["missing"]],
            "left_out": plan["left_out"],
            "notes": plan["notes"],
            "fields_left_out": sorted(totals.left_out),
            "steps_dropped": dict(sorted(totals.dropped.items())),
            "blank_pictures": dict(sorted(totals.blank.items())),
            "remarks": dict(sorted(totals.remarks.items())),
            "filter": filtering.described(self.filter, len(plan["episodes"]), totals.filtered) if self.filter else {},
            "splits": {},
            "held_out_by": plan["held_out_by"],
            "far_values": {},
        }

    def _totals(self) -> Totals:
        """Of every converted episode, packed or not."""
        totals = Totals()
        for packer in self.packers:
            for entry in packer.journal:
                totals.add(entry["totals"])
        for path in self.parts.glob("*.json"):
            part = read_part(self.parts, path.stem)
            totals.add(Totals.of_part(part, self.duplicates.decided(path.stem)))
        return totals

    def _finish(self, report: dict) -> dict:
        """Check every shard, write the tables, compute the statistics, write `dataset.json`, remove the state.

        Returns:
          The report, with what the statistics tell.
        """
        splits, totals = {}, self._totals()
        for packer in self.packers:
            entries = [entry for entry in packer.journal if entry["shard"]["samples"]]
            episodes = sum(entry["totals"]["episodes"] for entry in entries)
            steps = sum(entry["shard"]["samples"] for entry in entries)
            splits[packer.split] = {"episodes": episodes, "steps": steps, "shards": [e["shard"] for e in entries]}
        source = {"name": self.source.resolve().name, "format": self.plan["format"]}
        source |= {"options": self.plan["options"], "plan": planning.digest(self.plan)}
        features = self._features(totals)
        described = {"features": features, "splits": splits}
        described["fingerprint"] = step_shards.dataset_fingerprint(features, splits)
        tables = {split: open_table(self.out, split, described) for split, of in splits.items() if of["steps"]}
        statistics = self._statistics(tables)
        counts = {name: {"episodes": of["episodes"], "steps": of["steps"]} for name, of in splits.items()}
        report = {**report, "splits": counts, "far_values": _far_values(features, statistics)}
        write_json(self.out / REPORT, report)
        if self.filter:
            write_json(self.out / FILTERED, self._filtered(report))
        step_shards.write_dataset(
            self.out, features=features, fps=totals.common_fps(), source=source, splits=splits, statistics=statistics
        )
        shutil.rmtree(self.work)
        return report

    def _filtered(self, report: dict) -> dict:
        """What `--filter` did, with small frames of its first deeds of each kind in the order of the plan."""
        entries = [entry for packer in self.packers for entry in packer.journal]
        strips = {episode: of_episode for entry in entries for episode, of_episode in entry["strips"].items()}
        events, counts = [], Counter()
        for entry in self.plan["episodes"]:
            for kind, first, end, strip, words in strips.get(entry["id"], ()):
                counts[kind] += 1
                if counts[kind] <= SHOWN:
                    events.append({"kind": kind, "source": planning.place_of(entry), "first": first, "end": end,
                                   "words": words, "jpeg": strip})  # fmt: skip
        return {**report["filter"], "events": events}

    def _features(self, totals: Totals) -> dict:
        features = {}
        for member, shape in self.plan["cameras"].items():
            if totals.blank.get(member, 0) < totals.steps:
                features[member] = {"shape": [*shape, 3], "codec": "jpeg"} if shape else {"codec": "jpeg"}
                features[member][images.RESIZE] = self.plan["options"]["resize"]
        for name, shape in self.plan["columns"].items():
            features[name] = {"shape": shape, "dtype": np.dtype(COLUMNS[name]).name}
            if name in self.plan["names"]:
                features[name]["names"] = self.plan["names"][name]
        if totals.text:
            features["instruction"] = {"codec": "txt"}
        return features

    def _statistics(self, tables: Mapping[str, Table]) -> dict:
        """Of the training split, since that is what a model is normalised by; of the other where it is empty."""
        table, statistics = tables.get("train") or tables["val"], {}
        for name in self.plan["columns"]:
            chunks = table.column(name) if np.issubdtype(COLUMNS[name], np.floating) else iter(())
            if (first := next(chunks, None)) is not None:  # episodes of one step have no action
                statistics[name] = column_statistics(itertools.chain([first], chunks))
        return statistics
