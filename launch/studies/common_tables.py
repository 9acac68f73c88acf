"""What `latent_pretraining.py` and `scaling.py` say of the episodes that were driven: rates, differences, intervals.

Cells are {(arm or control, seed): {"episodes": {condition: lines}, ...}}, a line being {"task", "success", ...} of one
start; of an arm also "action_r2", "rate", "step" and "losses", see `latent_pretraining.Study.policy`.
"""

from collections.abc import Mapping, Sequence

import common

from lapa_jax.sim import scores

Cells = Mapping[tuple[str, int], Mapping]

CODES, REFERENCE = "action_probe_r2", "action_probe_r2_reference"
FEW_SEEDS = 5
"""A bootstrap over fewer draws from too few to show how much they differ."""
PROBES = {
    "codes used": ("codebook_utilization", "{:.0%}"),
    "PSNR gain (dB)": ("psnr_gain", "{:+.2f}"),
    "swap gap": ("swap_gap", "{:.0%}"),
    "R² codes": (CODES, "{:.3f}"),
    "R² untrained": ("action_probe_r2_untrained", "{:.3f}"),
    "R² reference (seed 0)": (REFERENCE, "{:.3f}"),
    "codes back in another clip": ("transfer_consistency", "{:.0%}"),
    "by chance": ("transfer_chance", "{:.0%}"),
    "R² back": ("transfer_action_r2", "{:.3f}"),
}
PREDICTIONS = {
    "codes right": ("val/latent_accuracy", "{:.1%}"),
    "majority": ("val/majority_accuracy", "{:.1%}"),
    "top 3": ("val/latent_accuracy_top3", "{:.1%}"),
    "nats": ("val/loss", "{:.2f}"),
    "nats, unigram": ("val/loss_unigram", "{:.2f}"),
}


def solved(cells: Cells, name: str, condition: str, task: str | None = None) -> list[list[bool]]:
    """Of each seed, whether each start was solved; those of one task, or all."""
    return [[line["success"] for line in cell["episodes"][condition] if task in (None, line["task"])]
            for (arm, _), cell in cells.items() if arm == name]  # fmt: skip


def rate(of_seeds: Sequence[Sequence[bool]]) -> dict:
    """`scores.of_counts` of all starts, with the interval of a bootstrap over seeds and starts if there are several.
    Where all starts went alike every draw is the same, and Wilson's interval stays."""
    summary = scores.of_counts(sum(map(sum, of_seeds)), sum(map(len, of_seeds)))
    if len(of_seeds) > 1 and summary["success_rate"] not in (0.0, 1.0):
        _, summary["low"], summary["high"] = scores.clustered_mean(of_seeds)
    return summary


def rates(cells: Cells) -> dict[str, dict]:
    """{arm or control: {"tasks": {condition: rate}, "overall": rate}}, all seeds together, for the plot."""
    results = {}
    for name in names(cells):
        of_conditions = {each: solved(cells, name, each) for each in conditions(cells)}
        together = [sum(parts, []) for parts in zip(*of_conditions.values(), strict=True)]
        results[name] = {"tasks": {each: rate(own) for each, own in of_conditions.items()}, "overall": rate(together)}
    return results


def names(cells: Cells) -> list[str]:
    """The arms and controls."""
    return list(dict.fromkeys(name for name, _ in cells))


def arms(cells: Cells) -> list[str]:
    """The arms: what was trained."""
    return list(dict.fromkeys(name for (name, _), cell in cells.items() if "action_r2" in cell))


def conditions(cells: Cells) -> list[str]:
    """What the starts were driven under."""
    return list(next(iter(cells.values()))["episodes"])


def by_arm(cells: Cells) -> str:
    """The table of success rates; of each seed in brackets, and R² of the actions of the validation demonstrations."""
    return f"{common.table(head(cells), [row(cells, name) for name in names(cells)])}\n{drawn(cells)}\n"


def head(cells: Cells) -> list[str]:
    """Of the columns that `row` fills."""
    return ["", *(f"success, {condition}" for condition in conditions(cells)), "R² of actions"]


def row(cells: Cells, name: str) -> list[str]:
    """An arm or control, its success rate under each condition, and R² of its actions."""
    from lapa_jax.evaluate.closed_loop import cell as shown

    shares = []
    for condition in conditions(cells):
        of_seeds = solved(cells, name, condition)
        each = f" [{', '.join(f'{sum(one) / len(one):.0%}' for one in of_seeds)}]" if len(of_seeds) > 1 else ""
        shares.append(shown(rate(of_seeds)) + each)
    r2 = [cell["action_r2"] for (arm, _), cell in cells.items() if arm == name and "action_r2" in cell]
    return [name, *shares, ", ".join(f"{score:.3f}" for score in r2)]


def by_task(cells: Cells) -> str:
    """The table of the first condition, task by task; nothing where there is one task."""
    from lapa_jax.evaluate.closed_loop import cell as shown

    condition, first = conditions(cells)[0], next(iter(cells.values()))
    tasks = list(dict.fromkeys(line["task"] for line in first["episodes"][condition]))
    if len(tasks) < 2:
        return ""
    rows = [[task, *(shown(rate(solved(cells, name, condition, task))) for name in names(cells))]
            for task in tasks]  # fmt: skip
    return f"Success by task, {condition}.\n\n{common.table(['task', *names(cells)], rows)}"


def differences(cells: Cells, of: str = "lapa") -> str:
    """The table of how much more of the starts an arm solves than each other one, in points."""
    if of not in arms(cells):
        return ""
    rows = []
    for arm in (arm for arm in arms(cells) if arm != of):
        rows.append([arm, *(ahead(solved(cells, of, each), solved(cells, arm, each)) for each in conditions(cells))])
    about = f"Paired differences in points. {drawn(cells)}"
    return f"{about}\n\n{common.table([f'{of} minus', *conditions(cells)], rows)}"


def ahead(first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]]) -> str:
    """How many points more of the same starts one policy solves than another, with its interval; in brackets each seed,
    where there are several. Where it is the same at every start, so is every draw of a bootstrap."""
    mean, low, high = (100 * value for value in scores.paired_difference(first, second))
    interval = f"{low:+.0f} to {high:+.0f}" if low < high else "at every start"
    seeds = [100 * (sum(a) / len(a) - sum(b) / len(b)) for a, b in zip(first, second, strict=True)]
    each = f" [{', '.join(f'{one:+.0f}' for one in seeds)}]" if len(seeds) > 1 else ""
    return f"{mean:+.0f} ({interval}){each}"


def drawn(cells: Cells) -> str:
    """How the intervals were made, and what they do not say."""
    count = len({seed for _, seed in cells})
    if count == 1:
        return ("Intervals of 95 %, Wilson's of rates and a bootstrap's over the starts of differences. What another "
                "seed would give, one seed cannot say.")  # fmt: skip
    few = f" {count} seeds are few: the interval is too narrow, look at each of them." if count < FEW_SEEDS else ""
    return ("Intervals of 95 % by a bootstrap over seeds, and over starts within them; Wilson's of rates where all "
            f"starts went alike.{few}")  # fmt: skip


def verdict(cells: Cells) -> str:
    """LAPA against scratch and true actions, and whether the comparison can say anything."""
    if not {"scratch", "lapa", "actions"} <= set(arms(cells)):
        return ""
    lines, of = [], rates(cells)
    for condition in conditions(cells):
        share = {name: of[name]["tasks"][condition]["success_rate"] for name in ("scratch", "lapa", "actions")}
        ratios = [f"{share['lapa'] / share[name]:.2f}" if share[name] else "undefined (0 successes)"
                  for name in ("scratch", "actions")]  # fmt: skip
        lines.append(f"{condition}: LAPA over scratch {ratios[0]}, LAPA over true actions {ratios[1]}")
    best = max(each["low"] for each in of["actions"]["tasks"].values())
    floor = max(each["success_rate"] for name in ("random", "repeat") for each in of[name]["tasks"].values())
    if best <= floor:
        lines.append("The upper bound is not clearly above the controls: at this size the comparison says nothing.")
    return "\n".join(lines) + "\n"


def choices(cells: Cells) -> str:
    """The table of what was chosen on validation demonstrations: an arm's rate on seed 0, and the best step of each
    seed."""
    rows = []
    for arm in arms(cells):
        own = [cell for (name, _), cell in cells.items() if name == arm]
        losses = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in own[0]["losses"].items())
        rows.append([arm, losses, f"{own[0]['rate']:g}", ", ".join(str(cell["step"]) for cell in own)])
    head = ["", "least loss on seed 0, by rate", "rate", "best step of each seed"]
    return f"Chosen on validation demonstrations.\n\n{common.table(head, rows)}"


def by_video(probes: Mapping[str, Sequence[Mapping]]) -> str:
    """The table of what the codes say: means over the seeds; of the reference, which the first seed alone has, its."""
    rows = []
    for name, group in probes.items():
        first = {REFERENCE: group[0][REFERENCE]} if REFERENCE in group[0] else {}
        rows.append([name, *common.cells(first | common.mean(group, PROBES), PROBES)])
    return common.table(["latent actions of the video", *PROBES], rows) if rows else ""


def predictions(lines: Mapping[str, Sequence[Mapping]]) -> str:
    """The table of how well stage 2 predicts each kind of codes, a row for each seed; the last line of each run."""
    rows = [[kind, str(seed), *common.cells(line, PREDICTIONS)]
            for kind, of_seeds in lines.items() for seed, line in enumerate(of_seeds)]  # fmt: skip
    about = "Stage 2 on held-out episodes of the video."
    return f"{about}\n\n{common.table(['codes', 'seed', *PREDICTIONS], rows)}" if rows else ""


def inverse(pseudo: Sequence[Mapping]) -> str:
    """What the pseudo-actions are worth."""
    said = ", ".join("unknown" if one["action_r2"] is None else f"{one['action_r2']:.3f}" for one in pseudo)
    return f"R² of the pseudo-actions against the true ones of the video, a seed each: {said}\n" if pseudo else ""
