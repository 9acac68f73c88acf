"""A share of a conversion: every n-th episode becomes a part; whoever finds all of them there packs them."""

import contextlib
import pathlib

from lapa_jax.core.files import read_json, write_json
from lapa_jax.core.progress import bar
from lapa_jax.data.convert import plan as planning
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.parts import Job, meta_path
from lapa_jax.data.convert.pool import PATIENCE, call, run_jobs
from lapa_jax.data.convert.run import already_finished, convert, with_captions
from lapa_jax.data.convert.share_lock import Busy, one_of_several
from lapa_jax.data.shards import step_shards

FAILED = ".failed"
"""Ending of the file that says that an episode was tried; whoever packs tries it again, and reports it."""


def convert_share(
    source: pathlib.Path,
    out: pathlib.Path,
    options: Options,
    share: tuple[int, int],
    workers: int = 0,
    *,
    max_errors: int = 0,
    max_missing: int | None = None,
    episode_timeout: float = PATIENCE,
) -> dict | None:
    """Converts the episodes of one share, and packs all where this share is the last.

    The shards are those of `convert` to the byte, whatever the number of shares, and whoever packs. All parts lie in
    the folder before they are packed: it needs twice the room of the shards for a while.

    Args:
      share: (number from 0, how many). All else as of `convert`, whose limits hold for the whole.

    Returns:
      The report of `convert`, or None where other shares are not done.
    """
    planning.check_folders(source, out)
    options = with_captions(source, options)
    plan = call(planning.make_plan, source, out, options, workers=workers)
    if (out / step_shards.DATASET).exists():
        return already_finished(out, plan)
    work = out / step_shards.WORK
    (work / "parts").mkdir(parents=True, exist_ok=True)
    try:
        with one_of_several(work, share):
            done = _make_parts(source, work, options, plan, share, workers, episode_timeout)
        # Two that finish together both let go before they try: one of them gets the folder for itself.
        return convert(source, out, options, workers, max_errors=max_errors, max_missing=max_missing,
                       episode_timeout=episode_timeout) if done else None  # fmt: skip
    except Busy:
        return None


def _make_parts(source, work, options, plan, share, workers, patience) -> bool:
    """Makes the parts of a share; whether those of all shares are there."""
    parts, (number, count) = work / "parts", share
    packed = {episode for journal in work.glob("*.tar.json") for episode in _episodes(journal)}
    exists = lambda entry: entry["id"] in packed or meta_path(parts, entry["id"]).exists()  # noqa: E731
    planning.pin(work, plan, {entry["id"] for entry in plan["episodes"] if exists(entry)})
    mine = [entry for i, entry in enumerate(plan["episodes"]) if i % count == number]
    _clear(parts, mine)
    waiting = [entry for entry in mine if not exists(entry)]
    shared = {key: plan[key] for key in ("format", "options", "columns", "cameras", "not_colour")}
    jobs = (Job(str(source), str(parts), shared, options.for_readers(), entry) for entry in waiting)
    shown = bar(total=len(mine), initial=len(mine) - len(waiting), desc="convert", unit="episode")
    try:
        with shown as progress, contextlib.closing(run_jobs(jobs, workers, patience)) as finished:
            for job, failure in finished:
                path = parts / f"{job.entry['id']}{FAILED}"
                path.unlink(missing_ok=True)
                if failure:
                    write_json(path, {"error": failure.error})
                progress.update()
    except KeyboardInterrupt:
        _clear(parts, mine)  # the workers were killed
        raise
    return all(exists(entry) or (parts / f"{entry['id']}{FAILED}").exists() for entry in plan["episodes"])


def _clear(parts: pathlib.Path, entries: list[dict]) -> None:
    """Removes what killed writers of some episodes have left half-written."""
    for entry in entries:
        for left in parts.glob(f".{entry['id']}.*.tmp"):
            left.unlink(missing_ok=True)


def _episodes(journal: pathlib.Path) -> list[str]:
    entry = read_json(journal)
    return [*entry["episodes"], *entry["errors"]]
