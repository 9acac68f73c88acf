"""The run of a conversion, start to end; see `convert`."""

import contextlib
import fcntl
import pathlib
import shutil
from collections.abc import Iterator

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json, write_json
from lapa_jax.core.progress import bar
from lapa_jax.data import shards
from lapa_jax.data.conversion import plan as planning
from lapa_jax.data.conversion.pack import Packer
from lapa_jax.data.conversion.parts import Job, read_part, remove_part
from lapa_jax.data.conversion.pool import run_jobs
from lapa_jax.data.index import open_index
from lapa_jax.data.statistics import column_statistics

REPORT = "report.json"


def convert(root: pathlib.Path, out: pathlib.Path, options: planning.Options, workers: int, max_errors: int) -> dict:
    """Converts a folder of videos to step shards, or finishes a conversion that was interrupted.

    Args:
      root: the source. out: a new folder, or that of the same conversion.
      options: what decides the content.
      workers: processes; 0 works in this one.
      max_errors: unreadable episodes that are tolerated; more fail the run after everything else has been converted.

    Returns:
      The report, also written to `report.json`: {"episodes", "steps", "errors": [{"path", "error"}], ...}; "finished"
      tells whether the output had been there already.
    """
    planning.check_folders(root, out)
    plan = planning.make_plan(root, out, options)
    work = out / shards.WORK
    if (out / shards.DATASET).exists():
        return _already_finished(out, plan)
    (work / "parts").mkdir(parents=True, exist_ok=True)
    with _lock(work):
        return _Conversion(root, out, options, plan).run(workers, max_errors)


def _already_finished(out: pathlib.Path, plan: dict) -> dict:
    source = shards.read_dataset(out)["source"]
    if source.get("plan") != planning.digest(plan):
        before, now = source.get("options", {}), plan["options"]
        changed = [f"--{k} was {before.get(k)}, now {now[k]}" for k in now if before.get(k) != now[k]]
        what = changed[0] if changed else "the source or its captions have changed since"
        raise UserError(f"{out} holds a finished conversion with another plan: {what}; choose another output")
    shutil.rmtree(out / shards.WORK, ignore_errors=True)
    return {**read_json(out / REPORT), "finished": True}


@contextlib.contextmanager
def _lock(work: pathlib.Path) -> Iterator[None]:
    """Keeps two conversions out of one folder; the lock goes with the process, however it ends."""
    with open(work / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is converting to {work.parent}; wait for it, or end it") from None
        yield


class _Conversion:
    def __init__(self, root: pathlib.Path, out: pathlib.Path, options: planning.Options, plan: dict):
        self.root, self.out, self.work, self.plan = root, out, out / shards.WORK, plan
        self.parts = self.work / "parts"
        self.options = {**plan["options"], "captions": options.captions}
        self._clean()
        self.packers = []
        for split in ("train", "val"):
            ids = [e["id"] for e in plan["episodes"] if e["split"] == split]
            if ids:
                self.packers.append(Packer(out, self.work, split, ids, plan["options"]))
        self.errors = {k: v for packer in self.packers for k, v in packer.errors().items()}
        self._check_plan()

    def _clean(self) -> None:
        """Removes what a killed run has left half-written: temporary files, and parts without their JSON."""
        for folder in (self.out, self.work, self.parts):
            for path in folder.glob(".*.tmp"):
                path.unlink()
        for path in self.parts.glob("*.part"):
            if read_part(self.parts, path.stem) is None:
                path.unlink()

    def _check_plan(self) -> None:
        settled = set().union(*(packer.settled() for packer in self.packers))
        planning.pin(self.work, self.plan, settled | {path.stem for path in self.parts.glob("*.json")})

    def run(self, workers: int, max_errors: int) -> dict:
        settled = set().union(*(packer.settled() for packer in self.packers))
        waiting = [e for e in self.plan["episodes"] if e["id"] not in settled and not read_part(self.parts, e["id"])]
        jobs = (Job(str(self.root), str(self.parts), self.options, self.plan["columns"], e) for e in waiting)
        total = len(self.plan["episodes"])
        with bar(total=total, initial=total - len(waiting), desc="convert", unit="episode") as progress:
            self._pack(max_errors)
            for _, failure in run_jobs(jobs, workers):
                if failure:
                    self.errors[failure.id] = failure.error
                    remove_part(self.parts, failure.id)
                progress.update()
                self._pack(max_errors)
        report = self._report()
        write_json(self.out / REPORT, report)
        self._judge(report, max_errors)
        self._finish()
        return {**report, "finished": False}

    def _pack(self, max_errors: int) -> None:
        for packer in self.packers:
            packer.advance(self.errors, skip_failed=len(self.errors) <= max_errors)

    def _judge(self, report: dict, max_errors: int) -> None:
        if len(self.errors) > max_errors:
            first = report["errors"][0]
            raise UserError(
                f"{len(self.errors)} of {len(self.plan['episodes'])} episodes cannot be read, --max_errors is "
                f"{max_errors}; the first: {first['path']}: {first['error']}. All are listed in {self.out / REPORT}; "
                "mend or remove them, or raise --max_errors, and run again: finished work is kept"
            )
        if not report["steps"]:
            raise UserError(f"no episode of {self.root} could be converted; see {self.out / REPORT}")

    def _outcomes(self) -> dict[str, dict]:
        """{id: {"steps", "bytes", "fps", "left_out"}} of every converted episode, packed or not."""
        packed = {e["id"]: e for packer in self.packers for entry in packer.journal for e in entry["episodes"]}
        outcomes = {}
        for episode in self.plan["episodes"]:
            part = packed.get(episode["id"]) or read_part(self.parts, episode["id"])
            if part:
                outcomes[episode["id"]] = part
        return outcomes

    def _report(self) -> dict:
        outcomes, captions = self._outcomes(), self.plan["captions"]
        paths = {e["id"]: e["path"] for e in self.plan["episodes"]}
        errors = [{"path": paths[k], "error": v} for k, v in self.errors.items()]
        return {
            "episodes": len(outcomes),
            "steps": sum(o["steps"] for o in outcomes.values()),
            "errors": sorted(errors, key=lambda e: e["path"]),
            "captions": captions,
            "other_files": self.plan["other_files"],
            "arrays_left_out": sorted({name for o in outcomes.values() for name in o["left_out"]}),
        }

    def _finish(self) -> None:
        """Index and check every shard, compute the statistics, write `dataset.json`, remove the state."""
        splits = {}
        for packer in self.packers:
            entries = [entry for entry in packer.journal if entry["episodes"]]
            episodes = [e for entry in entries for e in entry["episodes"]]
            steps = sum(e["steps"] for e in episodes)
            indexed = sum(len(open_index(self.out / entry["shard"]["name"])) for entry in entries)
            if indexed != steps:
                raise UserError(f"{self.out}: the {packer.split} shards hold {indexed} steps, not {steps}; start anew")
            splits[packer.split] = {"episodes": len(episodes), "steps": steps, "shards": [e["shard"] for e in entries]}
        source = {"name": self.root.resolve().name, "format": self.options["format"]}
        source |= {"options": self.plan["options"], "plan": planning.digest(self.plan)}
        shards.write_dataset(
            self.out,
            features=self._features(),
            fps=self._fps(),
            source=source,
            splits=splits,
            statistics=self._statistics(splits),
        )
        shutil.rmtree(self.work)

    def _features(self) -> dict:
        size = self.plan["options"]["size"]
        features = {"image": {"shape": [size, size, 3], "codec": "jpeg"}}
        for name, shape in self.plan["columns"].items():
            features[name] = {"shape": shape, "dtype": "float32"}
        if any(e["text"] for e in self.plan["episodes"]):
            features["instruction"] = {"codec": "txt"}
        return features

    def _fps(self) -> float | None:
        """The frame rate, where all episodes share it to 0.1 %."""
        rates = [o["fps"] for o in self._outcomes().values()]
        if None in rates or max(rates) > min(rates) * 1.001:
            return None
        return rates[0]

    def _statistics(self, splits: dict) -> dict:
        """Of the training split, since that is what a model is normalised by; of the other where it is empty."""
        split = "train" if splits.get("train", {}).get("steps") else "val"
        paths = [self.out / shard["name"] for shard in splits[split]["shards"]]
        return {name: column_statistics(shards.column(paths, name)) for name in self.plan["columns"]}
