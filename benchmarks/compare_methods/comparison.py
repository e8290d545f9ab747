"""The stages of the comparison: costs, trials, the choice among them, runs, and the points along them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.compare_methods import work
from benchmarks.compare_methods.contestants import Contestant, Fields, settings_of, source_fields
from benchmarks.compare_methods.plan import Length, Plan, length_of
from benchmarks.compare_methods.stages import Stages, digest
from benchmarks.compare_methods.training import Trained, identity, log_fields
from benchmarks.compare_methods.tuning import best_trial
from benchmarks.costs import Costs
from spo_jax.core.errors import UserError
from spo_jax.core.progress import stage
from spo_jax.run.settings import RunSettings

Entry = dict[str, Any]
_ANY = 16  # batches of a run whose programs are counted, which do not depend on it


class Labels(NamedTuple):
    """Labels that contestants learn from.

    Attributes:
      name: ``people`` or ``exact``.
      model: the model that is trained.
      pairs: folder of the prepared pairs.
      judge: the preference model that was trained on them.
      facts: digests of what runs read.
    """

    name: str
    model: str
    pairs: str
    judge: str
    facts: Mapping[str, str]


class Tuned(NamedTuple):
    """Settings that were chosen.

    Attributes:
      trials: the trials; none if the settings were given.
      chosen: the fields that were tuned.
      trained_share: share of the most training batches that are trained on with them.
    """

    trials: list[dict[str, Any]]
    chosen: Fields
    trained_share: float


class Tools(NamedTuple):
    """What does the work; tests have stand-ins.

    Attributes:
      trained: trains a run: function of (name, settings, digests of what it reads).
      costs: counts the operations of a run's programs, as JSON values.
      point: measures a run after some of its batches, or the base, whose run is None.
      share: share of the votes for a run, after its last batch: function of (run, labels).
    """

    trained: Callable[[str, RunSettings, Mapping[str, str]], Trained]
    costs: Callable[[RunSettings], dict[str, Any]]
    point: Callable[[Trained | None, int], dict[str, Any]]
    share: Callable[[Trained, str], float]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All contestants under one plan.

    Attributes:
      plan: how much is trained and measured.
      stages: where the results of stages are kept.
      tools: what does the work.
      measured: JSON values on which a measurement depends besides the weights.
    """

    plan: Plan
    stages: Stages
    tools: Tools
    measured: Mapping[str, Any]

    def base(self) -> dict[str, Any]:
        """Returns the measurement of the model before training."""
        return self.stages.made("points", "base", self.measured, lambda: self.tools.point(None, 0))

    def entry(self, contestant: Contestant, labels: Labels, chosen: Fields | None = None) -> Entry | None:
        """Tunes a contestant, and trains and measures it with every seed.

        Args:
          contestant: the contestant.
          labels: what it learns from.
          chosen: settings to take instead of tuning.

        Returns:
          JSON values about it; None if no trial or no run succeeded, which `Stages.failures` explains.
        """
        name = f"{contestant.name}-{labels.name}"
        return self.stages.attempted(name, lambda: self._entry(name, contestant, labels, chosen))

    def tuned(self, contestant: Contestant, labels: Labels) -> Tuned:
        """Tries all settings of a contestant, and chooses by the votes.

        Raises:
          UserError: no trial succeeded.
        """
        name = f"{contestant.name}-{labels.name}"
        trials = [
            self._trial(f"{name}-trial{number}", contestant, labels, fields)
            for number, fields in enumerate(contestant.trials(), 1)
        ]
        best = best_trial(trials)
        if best is None:
            raise UserError(f"no trial succeeded; the first says: {trials[0]['failed']}")
        return Tuned(trials, best["fields"], best["trained_share"])

    def _entry(self, name: str, contestant: Contestant, labels: Labels, chosen: Fields | None) -> Entry:
        tuned = self.tuned(contestant, labels) if chosen is None else Tuned([], chosen, contestant.valid_share)
        costs = self._costs(name, contestant, labels, tuned.chosen)
        runs = [self._run(f"{name}-seed{seed}", contestant, labels, costs, tuned, seed) for seed in self.plan.seeds]
        runs = [run for run in runs if run is not None]
        if not runs:
            raise UserError("no run succeeded")
        return {
            "name": contestant.name,
            "title": contestant.title,
            "source": contestant.source,
            "labels": labels.name,
            "config": contestant.config,
            "fields": {**contestant.fields},
            "trials": tuned.trials,
            "chosen": {**tuned.chosen},
            "runs": runs,
        }

    def _settings(
        self, contestant: Contestant, labels: Labels, fields: Fields, seed: int, length: Length
    ) -> RunSettings:
        about = source_fields(contestant, labels.pairs, labels.judge)
        about = {**about, "model": labels.model, **log_fields(length)}
        return settings_of(contestant, fields, seed, length.batches, about)

    def _costs(self, name: str, contestant: Contestant, labels: Labels, fields: Fields) -> Costs:
        """Counts the operations of programs, on which the optimizer's settings have no influence."""
        fields = {field: value for field, value in fields.items() if not field.startswith("optimizer.")}
        settings = self._settings(contestant, labels, fields, 0, Length(_ANY, _ANY))
        about = identity(settings, labels.facts)
        with stage(f"{name}: counting operations"):
            return work.read_costs(self.stages.made("costs", name, about, lambda: self.tools.costs(settings)))

    def _trial(self, name: str, contestant: Contestant, labels: Labels, fields: Fields) -> dict[str, Any]:
        """Trains with some settings, and has its images voted on; its share is None if it failed."""
        costs = self._costs(name, contestant, labels, fields)
        budget = self.plan.budget * self.plan.trial_share
        length = length_of(budget, work.per_batch(costs, contestant.valid_share), checkpoints=2)
        settings = self._settings(contestant, labels, fields, self.plan.tuning_seed, length)
        about = {"run": identity(settings, labels.facts), **self.measured}

        def make() -> dict[str, Any]:
            run = self.tools.trained(name, settings, labels.facts)
            if run.ended:
                raise UserError(run.ended)
            return {
                "share": self.tools.share(run, labels.name),
                "trained_share": work.share_of(costs, run.rows),
                "work": work.done(costs, run.rows, length.batches),
                "seconds": work.seconds_of(run.rows, length.batches),
            }

        with stage(name):
            found = self.stages.attempted(name, lambda: self.stages.made("trials", name, about, make))
        failed = {"share": None, "failed": self.stages.failures.get(name, "")}
        return {"fields": {**fields}, "batches": length.batches, **(failed if found is None else found)}

    def _run(
        self,
        name: str,
        contestant: Contestant,
        labels: Labels,
        costs: Costs,
        tuned: Tuned,
        seed: int,
    ) -> dict[str, Any] | None:
        """Trains with one seed, and measures the points along the run."""
        length = length_of(self.plan.budget, work.per_batch(costs, tuned.trained_share))
        settings = self._settings(contestant, labels, tuned.chosen, seed, length)
        with stage(name):
            run = self.stages.attempted(name, lambda: self.tools.trained(name, settings, labels.facts))
        if run is None:
            return None
        if run.ended:
            self.stages.failures[name] = run.ended
        about = {"run": digest(identity(settings, labels.facts)), **self.measured}
        steps = [step for step in self.plan.steps(length) if step in run.steps]
        points = []
        for step in steps:
            with stage(f"{name}: measuring batch {step} of {length.batches}"):
                found = self.stages.attempted(
                    f"{name}-{step}",
                    lambda step=step: self.stages.made(
                        "points", f"{name}-{step}", about, lambda: self.tools.point(run, step)
                    ),
                )
            if found is not None:
                points.append(self._point(found, costs, run.rows, step))
        return {"seed": seed, "batches": length.batches, "ended": run.ended, "points": points} if points else None

    @staticmethod
    def _point(found: Mapping[str, Any], costs: Costs, rows: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
        return {
            "step": step,
            "work": work.done(costs, rows, step),
            "seconds": work.seconds_of(rows, step),
            **found,
        }
