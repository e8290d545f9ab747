"""A rule: a function that looks at curves and says what it found, or nothing if its curves are not there."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from spo_jax.core.words import counted, readable
from spo_jax.run.diagnosis.curves import Curves
from spo_jax.run.verdict import verdict

Level = Literal["good", "note", "problem"]


class Finding(NamedTuple):
    """What a rule found.

    Attributes:
      level: ``good`` if all is as it should be, ``note`` if it is worth knowing, ``problem`` if something is wrong.
      text: a sentence about what was found, with its numbers.
      advice: a sentence about what to do; empty if all is well.
      learns: whether this shows that the run learns what it should; None if it says nothing about that.
      rule: name of the rule, which `diagnose` fills in.
    """

    level: Level
    text: str
    advice: str = ""
    learns: bool | None = None
    rule: str = ""


Rule = Callable[[Curves], Finding | None]


def diagnose(curves: Curves, rules: Iterable[Rule]) -> list[Finding]:
    """Applies rules to the curves of a run; problems come first, and what is well comes last."""
    found = [(rule, rule(curves)) for rule in rules]
    named = [finding._replace(rule=readable(rule.__name__)) for rule, finding in found if finding is not None]
    return sorted(named, key=lambda finding: ("problem", "note", "good").index(finding.level))


def headline(findings: Sequence[Finding], curves: Curves) -> str:
    """Says in a sentence or two whether a run learns."""
    problems = [finding for finding in findings if finding.level == "problem"]
    wrong = f" {counted(len(problems), 'thing')} {'looks' if len(problems) == 1 else 'look'} wrong." if problems else ""
    if curves.scores:
        return verdict(curves.scores) + (wrong or " Nothing looks wrong.")
    signs = [finding.learns for finding in findings if finding.learns is not None]
    if any(signs) and problems:
        return f"It moves, but not as it should.{wrong}"
    if any(signs):
        return "It is learning, and nothing looks wrong."
    if problems:
        return f"It is not learning.{wrong}" if False in signs else f"Not known whether it learns.{wrong}"
    return "It is not learning yet." if False in signs else "Too early to say whether it learns."
