"""A section of what the doctor says: facts in aligned columns, and findings below them."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spo_jax.run.diagnosis.rule import Finding

_WIDTH = 100  # columns at most, and where nothing says how wide the terminal is
_LEVELS = {"problem": "PROBLEM", "note": "note", "good": "ok"}  # words, because there are no colours


class Section(NamedTuple):
    """One section.

    Attributes:
      name: its name in JSON.
      title: its headline.
      facts: what was looked up, as text by name.
      findings: what follows from it.
      data: the facts for programs, with plain numbers.
    """

    name: str
    title: str
    facts: Mapping[str, str]
    findings: Sequence[Finding]
    data: Mapping[str, Any]

    @property
    def problems(self) -> int:
        """The number of problems."""
        return sum(finding.level == "problem" for finding in self.findings)

    def text(self) -> str:
        """Writes the section in plain text."""
        width = min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
        lines = [line for part in self.title.split("\n") for line in textwrap.wrap(part, width) or [""]]
        column = max((len(name) for name in self.facts), default=0) + 4
        for name, value in self.facts.items():
            lines += _hanging(f"  {name}".ljust(column), value, width)
        if self.findings:
            lines.append("")
        for finding in self.findings:
            mark = f"  {_LEVELS[finding.level]}".ljust(11)
            lines += _hanging(mark, f"{finding.rule}: {finding.text}" if finding.rule else finding.text, width)
            lines += _hanging(" " * 11, finding.advice, width) if finding.advice else []
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        """Returns the section as JSON."""
        return {"summary": self.title, **self.data, "findings": [finding._asdict() for finding in self.findings]}


def _hanging(first: str, text: str, width: int) -> list[str]:
    """Wraps text below the place where it begins; what follows a line break is a command, and stays in one line."""
    sentence, *commands = text.split("\n")
    wrapped = textwrap.wrap(sentence, max(width - len(first), 20), break_long_words=False, break_on_hyphens=False)
    return [(first if number == 0 else " " * len(first)) + line for number, line in enumerate([*wrapped, *commands])]
