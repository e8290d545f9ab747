"""The comparison as Markdown: a table of the chosen points, the choices of the tuning, and the verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.compare_methods import verdicts
from benchmarks.compare_methods.results import (
    ACCURACY,
    AESTHETIC,
    CHOSEN,
    DIVERSITY,
    LAYOUT,
    OUT_OF_RANGE,
    TERMS,
    Base,
    measures,
    rows,
    summarised,
    work_to_reach,
)  # fmt: skip

_HEADS = {
    AESTHETIC: "aesthetic, gain",
    LAYOUT: "layout, gain",
    ACCURACY: "prompt shown",
    DIVERSITY: "diversity",
    OUT_OF_RANGE: "out of range",
}


def main_table(entries: Sequence[Mapping[str, Any]], base: Base) -> str:
    """Formats a line for the base, and one for each of a contestant's `CHOSEN` points."""
    names = [name for name in measures(base) if not name.startswith(TERMS)]
    lines = [("", "point", "work", "min", *(_HEADS[name] for name in names))]
    still = [name for name in names if name not in (AESTHETIC, LAYOUT)]
    before = {name: f"{rows(base, name).mean():.3f}" for name in still}
    lines.append(("base", "", "", "", *(before.get(name, "0") for name in names)))
    for entry in entries:
        found = summarised(entry, base)
        for when in CHOSEN:
            point = found[when]
            lines.append(
                (
                    entry["title"] if when == CHOSEN[0] else "",
                    when,
                    thousands(point["work"]["mean"]),
                    f"{point['seconds']['mean'] / 60:.1f}",
                    *(_cell(point[name], name) for name in names),
                )
            )
    return markdown(lines)


def terms_table(entries: Sequence[Mapping[str, Any]], base: Base) -> str:
    """Formats the gain in each term of the aesthetic at the best points; empty if the terms are not known."""
    names = [name for name in measures(base) if name.startswith(TERMS)]
    if not names:
        return ""
    lines = [("best point, gain in", *(name.removeprefix(TERMS) for name in names))]
    for entry in entries:
        best = summarised(entry, base)["best"]
        lines.append((entry["title"], *(_cell(best[name], name) for name in names)))
    return markdown(lines)


def work_table(entries: Sequence[Mapping[str, Any]], base: Base) -> str:
    """Formats the work that reaches the rival's best level, and what the work of a whole run consists of."""
    rival = verdicts.rival_of(entries)
    levels = verdicts.LEVELS if rival is not None else ()
    height = verdicts.top(summarised(rival, base)["curve"]) if rival is not None else 0.0
    heads = [f"work to {level:.0%} of {rival['title']}'s best level".replace("%", " %", 1) for level in levels]
    parts = [*entries[0]["runs"][0]["points"][-1]["work"]]
    lines = [("", *heads, *(f"{part}, share" for part in parts), "forwards per second")]
    for entry in entries:
        found = summarised(entry, base)
        reached = [work_to_reach(found["curve"], level * height) for level in levels]
        final = found["final"]
        whole = sum(final["parts"].values())
        lines.append(
            (
                entry["title"],
                *("not reached" if work is None else thousands(work) for work in reached),
                *(f"{final['parts'][part] / whole:.0%}".replace("%", " %") for part in parts),
                f"{whole / max(final['seconds']['mean'], 1e-9):,.0f}",
            )
        )
    return markdown(lines)


def tuning_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Formats the trials of each contestant: their settings, and the votes that they won; the chosen one is bold."""
    lines = [("", *(f"trial {number}" for number in range(1, 1 + max(len(entry["trials"]) for entry in entries))))]
    for entry in entries:
        cells = []
        for trial in entry["trials"]:
            settings = ", ".join(f"{name.rpartition('.')[2]} {value:g}" for name, value in trial["fields"].items())
            settings = settings.replace("learning_rate", "lr")
            won = "failed" if trial["share"] is None else f"{trial['share']:.3f}"
            cells.append(f"**{settings}: {won}**" if trial["fields"] == entry["chosen"] else f"{settings}: {won}")
        lines.append((entry["title"], *cells))
    width = len(lines[0])
    return markdown([(*line, *[""] * (width - len(line))) for line in lines])


def text_of(found: Mapping[str, Any]) -> str:
    """Returns the whole text: what was compared how, tables and verdicts.

    Args:
      found: the content of ``results.json``, with the entries' runs.
    """
    base = found["base"]
    parts = [_facts(found)]
    for labels, entries in found["entries"].items():
        if not entries:
            continue
        judge = found["judges"].get(labels)
        latent = found.get("latent_judges", {}).get(labels)
        parts.append(f"### {_TITLES[labels]}")
        parts += [main_table(entries, base), terms_table(entries, base), work_table(entries, base)]
        if judge and judge["work"] is not None:
            parts.append(
                f"Not counted above: training the preference model, which online methods but LPO listen to, is worth "
                f"{thousands(judge['work'])} evaluations of the UNet, once for all of them ({judge['model']})."
            )
        if latent:
            parts.append(
                f"Training the latent reward model, which LPO listens to, is worth {thousands(latent['work'])} "
                f"({latent['model']}) and not counted either."
            )
        if any(entry["trials"] for entry in entries):
            parts += ["What the trials won, as a share of the votes against the base:", tuning_table(entries)]
        parts.append("\n".join(f"- {sentence}" for sentence in verdicts.sentences(entries, base)))
    if found["failures"]:
        parts.append("What failed:\n\n" + "\n".join(f"- {name}: {why}" for name, why in found["failures"].items()))
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


_TITLES = {"people": "Labels by people", "exact": "Exact labels", "ablations": "What SPO's parts are worth"}


def _facts(found: Mapping[str, Any]) -> str:
    plan = found["plan"]
    seeds = ", ".join(map(str, plan["seeds"]))
    whole, trial = thousands(plan["budget"]), thousands(plan["budget"] * plan["trial_share"])
    return (
        f"Seeds {seeds}; {found['held_out']} held-out prompts with {plan['per_prompt']} images each at every point; "
        "± is a standard error over the seeds. Work is counted in thousands (k) of evaluations of the UNet for one "
        f"latent; a run is worth {whole}, a trial {trial}. "
        f"{found['device']['host']}, {found['date'][:10]}, `python -m benchmarks.compare_methods`, "
        f"{found['hours']:.1f} hours of computing."
    )


def thousands(work: float) -> str:
    """Writes work in thousands: ``12.3 k``, ``0.4 k``, ``123 k``."""
    return f"{work / 1000:.1f} k" if work < 99_950 else f"{work / 1000:.0f} k"


def _cell(over: Mapping[str, float | None], name: str) -> str:
    is_gain = name in (AESTHETIC, LAYOUT) or name.startswith(TERMS)
    digits = 4 if name == OUT_OF_RANGE else 3 if name in (ACCURACY, DIVERSITY) else 2
    number = f"{over['mean']:{'+' if is_gain else ''}.{digits}f}"
    return number if over["error"] is None else f"{number} ± {over['error']:.{digits}f}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Formats lines of cells, of which the first is the head, as a Markdown table."""
    head, *body = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *body))
