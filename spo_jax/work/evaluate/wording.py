"""What an evaluation found in words, for the tables, the page and the terminal."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from spo_jax.core.statistics import Estimate
from spo_jax.core.words import counted, listed, readable, with_error
from spo_jax.run.report.scores import MARKS as OUTCOMES
from spo_jax.run.verdict import FEW, limit_text
from spo_jax.work.evaluate.compare import Cell, Comparison, GroupValue
from spo_jax.work.evaluate.front import DEFINITION, Knee
from spo_jax.work.evaluate.result import CUSTOM, Evaluation

# A mark and a word besides the colour; signs of hacking have no better direction.
MARKS: Mapping[str, str] = MappingProxyType(OUTCOMES | {"higher": "↑ higher", "lower": "↓ lower", "": ""})
# Fields of a protocol that say what was drawn; the others say where that is written.
FIELDS = ("prompts", "solver", "steps", "guidance", "images_per_prompt", "seed", "seed_rule", "size", "statistic")
TRAINED = "†"
_FLAGS = {"count": "limit"}  # what the user calls a field of the protocol whose flag has another name


def title(evaluation: Evaluation) -> str:
    """Returns the headline, which names the protocol."""
    return f"Evaluation under the protocol {evaluation.protocol.get('name', '')}".strip()


def about(evaluation: Evaluation) -> str:
    """Says what the protocol is; where something of it was changed, as what is described is the unchanged one."""
    text = str(evaluation.protocol.get("about", ""))
    return f"The unchanged protocol: {text}" if text and evaluation.overridden else text


def protocol_fields(evaluation: Evaluation) -> dict[str, str]:
    """Returns the fields of the protocol that say what was drawn, with their values as text."""
    shown = [*FIELDS, *(["group_size"] if evaluation.protocol.get("group_size") else ())]
    shown += [name for name in evaluation.overridden if name not in shown]
    fields = {
        _FLAGS.get(name, name): _value(evaluation.protocol[name]) for name in shown if name in evaluation.protocol
    }
    if "size" in fields and (size := evaluation.about.get("size")):
        fields["size"] = size if evaluation.protocol["size"] else f"{size}, the model's own"
    scale = evaluation.protocol.get("guidance")
    others = [f"{each.name} {each.guidance:g}" for each in evaluation.contestants if each.guidance not in (None, scale)]
    if others and "guidance" in fields:  # a protocol may give contestants scales of their own
        fields["guidance"] += f", but {listed(others)}"
    return fields


def _value(value: Any) -> str:
    return "the model's own" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def made_fields(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the facts for the record, without those that the fields of the protocol say."""
    shown = protocol_fields(evaluation)
    return {name: value for name, value in evaluation.about.items() if name not in shown}


def caption(evaluation: Evaluation) -> str:
    """Names the protocol and what was changed of it, to stand with every table."""
    if evaluation.protocol.get("name") == CUSTOM:
        return "No protocol by name: drawn as the flags say."
    name = f"Protocol {evaluation.protocol.get('name', '')}"
    if not evaluation.overridden:
        return f"{name}, unchanged."
    values = {_FLAGS.get(field, field): evaluation.protocol.get(field) for field in evaluation.overridden}
    changed = [f"{field}={_value(value)}" for field, value in values.items()]
    return f"{name}, but with {listed(changed)}: not to be compared with published numbers of it."


def value_text(estimate: Estimate) -> str:
    """Writes a value with its standard error."""
    return with_error(estimate.value, estimate.error)


def difference_text(difference: Estimate) -> str:
    """Writes a difference with its interval, all to the place to which the standard error is known."""
    if difference.error is None or difference.low is None or difference.high is None:
        return with_error(difference.value, None, sign="+")
    if difference.error == 0:
        return f"{difference.value:+.3g}" if difference.value else "0"
    ends = [with_error(end, difference.error, sign="+").partition(" ")[0] for end in (difference.low, difference.high)]
    value = with_error(difference.value, difference.error, sign="+").partition(" ")[0]
    return f"{value} [{', '.join(ends)}]"


def percent_text(share: float) -> str:
    """Writes a share in whole per cent; halves go up, as JavaScript rounds them in the page."""
    return f"{math.floor(100 * share + 0.5)} %"


def group_text(value: GroupValue) -> str:
    """Writes a value of a group of prompts, with the deviation between blocks of them in brackets, if it has any."""
    if value.deviation is None:
        return with_error(value.value, value.error)
    return f"{value.value:.4g} ({value.deviation:.2g})"


def finding(comparison: Comparison, name: str) -> str:
    """Says in one sentence how a contestant compares with the first one, and in a second one what to doubt about it."""
    cells = comparison.cells[name]
    rewards = {score: cell for score, cell in cells.items() if score not in comparison.evaluation.signs}
    clauses = [f"{end} on {_by(found)}" for end in ("better", "worse") if (found := _that_are(rewards, end))]
    if unchanged := _that_are(rewards, "unchanged"):
        clauses.append(f"no difference beyond noise in {listed(list(map(readable, unchanged)))}")
    if unknown := _that_are(rewards, "unknown"):
        clauses.append(f"not known for {listed(list(map(readable, unknown)))}")
    signs = [
        f"{end} {_by(found)}"
        for end in ("higher", "lower")
        if (found := {score: cell for score, cell in cells.items() if cell.outcome == end})
    ]
    if signs:
        clauses.append(f"signs that moved: {listed(signs)}")
    sentence = "; ".join(clauses) or "nothing to compare"
    return f"{sentence[0].upper()}{sentence[1:]}.{_doubt(rewards)}"


def _that_are(cells: Mapping[str, Cell], outcome: str) -> dict[str, Cell]:
    return {score: cell for score, cell in cells.items() if cell.outcome == outcome}


def _by(cells: Mapping[str, Cell]) -> str:
    """Lists scores with the size of their differences, which are known."""
    parts = []
    for score, cell in cells.items():
        if cell.difference is not None:
            by = with_error(abs(cell.difference.value), cell.difference.error, digits=1)
            parts.append(f"{readable(score)} by {by}")
    return listed(parts)


def _doubt(rewards: Mapping[str, Cell]) -> str:
    """Compares the reward that a contestant was trained on with the others, if both are known."""
    rose = [cell for cell in rewards.values() if cell.trained and cell.outcome == "better"]
    held_out = {score: cell for score, cell in rewards.items() if not cell.trained and cell.outcome}
    if not rose or not held_out:
        return ""
    fell = _that_are(held_out, "worse")
    if fell:
        return f" It gained on what it was trained on and lost {listed(list(map(readable, fell)))}: reward hacking."
    if not _that_are(held_out, "better"):
        return " It gained only on what it was trained on, which is what reward hacking looks like."
    return ""


def knee_text(comparison: Comparison, group: str, knee: Knee) -> str:
    """Says which strength of a LoRA to use, and how far the others are behind."""
    gains = ", ".join(f"{name} {gain:+.2f}" for name, gain in knee.gains.items())
    judged = listed(list(map(readable, knee.rewards)))
    basis = f"judged by {judged}" if knee.held_out else f"judged by {judged}, which it was trained on"
    if knee.knee is None:
        return f"{group} has no knee: no strength is better than {comparison.first} beyond noise ({basis}: {gains})."
    strength = {each.name: each.strength for each in comparison.evaluation.contestants}
    best = "" if knee.best == knee.knee else f"; the largest gain is at {strength[knee.best]:g}"
    return f"{group} has its knee at strength {strength[knee.knee]:g}{best} ({basis}: {gains})."


def knee_definition(comparison: Comparison) -> str:
    """Says what the knee is."""
    return DEFINITION.format(first=comparison.first)


def remarks(comparison: Comparison) -> list[str]:
    """Says in sentences how the numbers are to be read, and where they are weak."""
    evaluation = comparison.evaluation
    prompts, images = len(evaluation.prompts), evaluation.images_per_prompt
    said = [
        f"Values are {evaluation.protocol.get('statistic', 'mean')}s over {counted(prompts, 'prompt')} with "
        f"{counted(images, 'image')} each, ± one standard error; intervals are 95 %, from resampled prompts."
    ]
    if elsewhere := evaluation.from_elsewhere:
        said.append(
            f"The images of {listed(elsewhere)} come from elsewhere: they share the prompts with the others, and their "
            "noise is not known."
        )
    said += _limit(comparison)
    if any(cell.trained for cells in comparison.cells.values() for cell in cells.values()):
        said.append(f"{TRAINED} marks a score that the contestant was trained on: a gain there proves little.")
    if evaluation.signs:
        signs = listed([readable(score) for score in evaluation.score_names if score in evaluation.signs])
        said.append(f"Signs of reward hacking ({signs}) are no rewards and have no better direction.")
    said += _few(comparison)
    if missing := _missing(evaluation):
        said.append(f"Not complete: {'; '.join(missing)}.")
    return said


def cautions(comparison: Comparison) -> list[str]:
    """Returns those of the remarks that verdicts should not be read without."""
    return _limit(comparison) + _few(comparison)


def _few(comparison: Comparison) -> list[str]:
    prompts = len(comparison.evaluation.prompts)
    return [f"With only {counted(prompts, 'prompt')}, all of this is a hint and not a finding."] * (prompts < FEW)


def _limit(comparison: Comparison) -> list[str]:
    """Says by how much a difference has to exceed its standard error, if there is one."""
    if not comparison.compared:
        return []
    if math.isinf(comparison.limit):
        return ["No difference can be told from noise: a single prompt has no standard error."]
    looked_at = f"{counted(comparison.compared, 'difference')} {'is' if comparison.compared == 1 else 'are'} looked at"
    prompts = counted(len(comparison.evaluation.prompts), "prompt")
    return [
        f"A difference counts where it exceeds {limit_text(comparison.limit)} standard errors, because {looked_at}, "
        f"and because standard errors are estimated from {prompts}."
    ]


def _missing(evaluation: Evaluation) -> Sequence[str]:
    """Counts what has no score yet, for each contestant; a score that it never has is not missing."""
    counts = {
        name: max((int((~np.isfinite(values)).sum()) for values in scores.values()), default=0)
        for name, scores in evaluation.scores.items()
    }
    return [f"{name} lacks scores of {counted(count, 'image')}" for name, count in counts.items() if count]
