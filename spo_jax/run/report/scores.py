"""Scores before and after as the page shows them, and the settings and facts beside them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from spo_jax.core.config import Settings, describe
from spo_jax.core.words import duration, readable, with_error
from spo_jax.run.verdict import outcomes

# A mark and a word besides the colour, for readers who do not see it and for paper.
MARKS = {"better": "▲ better", "worse": "▼ worse", "unchanged": "≈ within noise", "unknown": "error unknown"}


def score_rows(scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns a row of text for each score: name, meaning, before, after, change, outcome and its mark."""
    rows = []
    told = ""
    found = outcomes(scores)
    for name, score in scores.items():
        meaning = score.get("meaning", "")
        rows.append(
            {
                "name": readable(name),
                "meaning": meaning if meaning != told else "",  # that of many timesteps is the same
                "better": "lower is better" if score.get("lower_is_better") else "",
                **{when: _number(score.get(when), score.get(f"{when}_se")) for when in ("before", "after")},
                "change": _number(score.get("change"), score.get("change_se"), sign="+"),
                "outcome": found[name],
                "mark": MARKS[found[name]],
            }
        )
        told = meaning
    return rows


def _number(value: float | None, error: float | None, sign: str = "") -> str:
    return "–" if value is None else with_error(value, error, sign=sign)


def setting_rows(settings: Settings) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Returns the settings that differ from their defaults, and all others: name, value, default and meaning."""
    defaults = {name: value for name, _, value, _, _ in describe(type(settings)())}
    rows = [
        {"name": name, "value": value, "default": defaults[name], "meaning": meaning}
        for name, _, value, _, meaning in describe(settings)
    ]
    changed = [row for row in rows if row["value"] != row["default"]]
    return changed, [row for row in rows if row["value"] == row["default"]]


def facts(summary: Mapping[str, Any]) -> list[str]:
    """Returns what the head of the page says about a run, as far as the summary knows it."""
    known = []
    if "finished" in summary:
        known.append(day(summary["finished"]))
    if "method" in summary:
        known.append(f"method {summary['method']}")
    if "batches" in summary:
        known.append(f"{summary['batches']:,} batches")
    if "wall_seconds" in summary:
        known.append(duration(summary["wall_seconds"]))
    if "images" in summary:
        known.append(f"{summary['images']:,} pairs of images scored")
    device = summary.get("versions", {}).get("device")
    return known + ([device] if device else [])


def day(moment: str) -> str:
    """Writes the date of an ISO time: "25 November 2026"."""
    date = datetime.fromisoformat(moment)
    return f"{date.day} {date:%B %Y}"
