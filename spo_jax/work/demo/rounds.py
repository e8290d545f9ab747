"""A round from votes to a LoRA: the commands of its steps, and how far it has come, which is read from disk."""

import dataclasses
import enum
import re
import shlex
import statistics
from pathlib import Path
from typing import NamedTuple

from spo_jax import toy
from spo_jax.core.json_text import BadJSON, parse_json
from spo_jax.core.run_files import LORA, SPM, SUMMARY, holds_run
from spo_jax.data.preferences.format import RECORD
from spo_jax.run.lock import user_of
from spo_jax.run.verdict import outcomes
from spo_jax.work.demo.ballot import COLLECT
from spo_jax.work.demo.context import PageContext
from spo_jax.work.demo.jobs import was_stopped

ENOUGH_VOTES = 40
_HELD_OUT = 0.2  # share of the votes on which the judge is measured
_SPLITS = ("train", "validation")
_ACCURACY = "pair accuracy/"  # of a judge, by timestep
_ROUND = re.compile(r"data([1-9][0-9]{0,3})")


class State(enum.Enum):
    """How far a step has come."""

    WAITING = "waits for the step before"
    READY = "ready"
    RUNNING = "running"
    ELSEWHERE = "running, started in a terminal, by another page, or by one that has ended"
    STOPPED = "stopped, and continues where it was"
    STOPPED_EARLY = "stopped before the first batch: nothing to save; Run starts it anew"
    FAILED = "failed: the last lines say why"
    DONE = "done"


class Learned(NamedTuple):
    """What a run that is done says of what it has learned.

    Attributes:
      verdict: a sentence.
      anything: whether any score became better by more than noise.
    """

    verdict: str
    anything: bool


@dataclasses.dataclass(frozen=True)
class Step:
    """A command of a round.

    Attributes:
      name: what it is called.
      job: what it is called while it runs, which says of which round it is.
      meaning: what it does, in a sentence.
      arguments: module and flags, for ``python -m``.
      output: file with what it prints.
      results: files that are there when it is done.
      run: folder of its run, if it is one that can be continued.
    """

    name: str
    job: str
    meaning: str
    arguments: tuple[str, ...]
    output: Path
    results: tuple[Path, ...]
    run: Path | None = None

    @property
    def command(self) -> str:
        """The line that does the same in a terminal."""
        module, *flags = self.arguments
        return " \\\n  ".join([f"python -m {module}", *map(shlex.quote, flags)])

    @property
    def is_done(self) -> bool:
        """Whether its results are there."""
        return all(path.exists() for path in self.results)

    @property
    def learned(self) -> Learned | None:
        """What its run says of itself; None if it has no run, or if that says nothing."""
        return None if self.run is None or not self.is_done else _learned(self.run / SUMMARY)

    @property
    def was_started(self) -> bool:
        """Whether it has run before, here or in a terminal."""
        return self.output.exists() or (self.run is not None and holds_run(self.run))


class Round:
    """A round: the votes that there are, a judge that learns from them, and a LoRA that learns from the judge.

    Args:
      page: what the tabs share.
      number: its number, from 1.
    """

    def __init__(self, page: PageContext, number: int):
        self._page = page
        self.number = number
        self.votes = page.out / COLLECT
        self.data = page.out / f"data{number}"
        self.judge = page.runs / f"taste{number}_judge"
        self.tuned = page.runs / f"taste{number}"

    @property
    def lora(self) -> str:
        """Name of its LoRA among the choices of the page."""
        return self.tuned.name

    def steps(self) -> tuple[Step, ...]:
        """Returns the commands, in order."""
        return (self._prepare(), self._train_judge(), self._tune())

    def states(self, running: str, votes: int) -> list[State]:
        """Returns how far each step has come.

        Args:
          running: `Step.job` of the step that is running, of whichever round; empty if none is.
          votes: number of votes.
        """
        states = []
        before = votes >= ENOUGH_VOTES
        for step in self.steps():
            states.append(_state(step, before, running))
            before = states[-1] is State.DONE
        return states

    def _prepare(self) -> Step:
        flags = {"dataset": "folder", "source": self.votes, "hold-out": _HELD_OUT, "data-dir": self.data}
        return self._step(
            "Prepare the votes",
            "Checks the votes, and keeps a fifth of them to measure the judge with.",
            "prepare",
            flags,
            tuple(self.data / split / RECORD for split in _SPLITS),
        )

    def _train_judge(self) -> Step:
        flags = {"config": self._config("taste_spm"), **self._model(), "config.data_dir": self.data}
        return self._step(
            "Teach the judge",
            "Continues the training of the preference model with your votes: the judge of the next step.",
            "train",
            flags,
            (self.judge / SUMMARY, self.judge / SPM),
            self.judge,
        )

    def _tune(self) -> Step:
        prompts = {"config.prompts": self._page.prompts_file} if self._page.prompts_file else {}
        flags = {"config": self._config("taste"), **self._model(), **prompts, "config.spm.model": self.judge / SPM}
        return self._step(
            "Train the LoRA",
            "Trains a LoRA by SPO, with your judge.",
            "train",
            flags,
            (self.tuned / SUMMARY, self.tuned / LORA),
            self.tuned,
        )

    def _step(self, name, meaning, module, flags, results, run=None) -> Step:
        arguments = [f"spo_jax.{module}", *(f"--{flag}={value}" for flag, value in flags.items())]
        if run is not None:
            arguments += [f"--out={run}", "--auto-resume"]
        output = self._page.out / "logs" / f"{self.number}_{name.lower().replace(' ', '_')}.txt"
        return Step(name, f"{name} (round {self.number})", meaning, tuple(arguments), output, results, run)

    def _config(self, kind: str) -> str:
        return f"{kind}_{'toy' if self._page.model == toy.NAME else 'sd15'}"

    def _model(self) -> dict[str, str]:
        """Returns the flags that name the model, which the toy's configs know."""
        if self._page.model == toy.NAME:
            return {}
        return {f"config.{field}": value for field, value in self._page.model_fields.items() if value}


def _state(step: Step, before: bool, running: str) -> State:
    """Returns the state of a step; ``before`` says whether the one before it is done."""
    if running == step.job:
        return State.RUNNING
    if step.run is not None and user_of(step.run):
        return State.ELSEWHERE
    if step.is_done:
        return State.DONE
    if not before:
        return State.WAITING
    if step.run is not None and holds_run(step.run):
        return State.STOPPED
    if was_stopped(step.output):
        return State.STOPPED_EARLY
    return State.FAILED if step.was_started else State.READY


def _learned(summary: Path) -> Learned | None:
    try:
        told = parse_json(summary.read_bytes())
        verdict, scores = str(told["verdict"]), told["scores"]
        found = outcomes(scores)
        accuracies = [(score["before"], score["after"]) for name, score in scores.items() if name.startswith(_ACCURACY)]
        if accuracies:
            before, after = (statistics.fmean(column) for column in zip(*accuracies, strict=True))
            verdict += f" On average over the timesteps, {after:.0%} of the votes kept aside are ordered right"
            verdict += f" ({before:.0%} before)."
    except (OSError, BadJSON, AttributeError, KeyError, TypeError, ValueError):
        return None  # it is not there any more, or of another version
    return Learned(verdict, "better" in found.values())


def latest(page: PageContext) -> int:
    """Returns the number of the latest round that was begun; 1 if none was."""
    folders = page.out.glob("data*") if page.out.is_dir() else ()
    return max((int(match[1]) for folder in folders if (match := _ROUND.fullmatch(folder.name))), default=1)
