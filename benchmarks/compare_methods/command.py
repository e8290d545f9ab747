"""The work of the command, after its flags are checked: sources, the base, and one contestant after the other."""

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from benchmarks.common import device_info
from benchmarks.compare_methods import documents, sources, voting, work
from benchmarks.compare_methods.comparison import Comparison, Tools
from benchmarks.compare_methods.contestants import CONTESTANTS, Contestant, Groups
from benchmarks.compare_methods.measuring import SEED, Measurer
from benchmarks.compare_methods.plan import Plan
from benchmarks.compare_methods.stages import Stages
from benchmarks.compare_methods.training import Trained, adapter_of, trained
from spo_jax.core.progress import say
from spo_jax.parallel.mesh import make_mesh
from spo_jax.run.versions import versions
from spo_jax.toy import world

REWARDS = ("toy", "toy@terms")  # the truth, and what its aesthetic and the layout are made of


def compare(
    folder: Path, data: Path, plan: Plan, groups: Groups, tune: bool, model: str, judges: Mapping[str, str]
) -> dict[str, Any]:
    """Does everything that is not done yet, and writes results after each contestant.

    Args:
      folder: folder of all stages and results.
      data: folder of the pairs.
      plan: how much is trained and measured.
      groups: contestants by the labels that they learn from; ``ablations`` learn from people's.
      tune: choose settings by trials, and do not take those of the configs.
      model: the model that is trained: a pipeline of the toy world.
      judges: preference models by labels, where other ones are asked for than those of `sources.labels_of`.

    Returns:
      Everything that was found, as JSON values.

    Raises:
      UserError: the pairs or the preference models cannot be made, or a file cannot be written.
    """
    stages = Stages(folder)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        about = {"date": _now(), "versions": versions(jax.sharding.get_mesh()), "device": device_info()}
    measurer = Measurer(plan, model, REWARDS, world.HELD_OUT_PROMPTS, world.TRAIN_PROMPTS)
    comparison = Comparison(plan, stages, tools(folder, measurer), measured_by(plan, measurer))
    found: dict[str, Any] = {
        **about,
        "model": model,
        "plan": dataclasses.asdict(plan),
        "held_out": len(world.HELD_OUT_PROMPTS),
        "base": comparison.base(),
        "judges": {},
        "latent_judges": {},
        "entries": {},
        "failures": stages.failures,
    }
    for name, contestants in groups:
        kind = "people" if name == documents.ABLATIONS else name
        labels, found["judges"][name] = sources.labels_of(kind, model, data, stages, judges.get(kind, ""))
        chosen = None if tune else {}
        if tune and name == documents.ABLATIONS:
            chosen = comparison.tuned(_spo(), labels).chosen
        found["entries"][name] = []
        for number, contestant in enumerate(contestants, 1):
            say(f"{name}: {contestant.name}, {number} of {len(contestants)}")
            own = labels
            if contestant.source == "latent judge":
                own, found["latent_judges"][name] = sources.with_latent_judge(labels, stages)
            entry = comparison.entry(contestant, own, chosen)
            if entry is not None:
                found["entries"][name].append(entry)
                documents.write(folder, found)  # a command that is killed leaves what is known so far
    return found


def tools(folder: Path, measurer: Measurer) -> Tools:
    """Returns what does the work of a comparison in ``folder``."""
    voted: dict[str, Any] = {}

    def train(name: str, settings: Any, facts: Mapping[str, str]) -> Trained:
        return trained(folder / "runs", name, settings, facts)

    def point(run: Trained | None, step: int) -> dict[str, Any]:
        return measurer.point(measurer.fresh if run is None else adapter_of(run, step))

    def share(run: Trained, labels: str) -> float:
        if not voted:
            voted["base"] = voting.measures(*measurer.voted_on(measurer.fresh))
        after = voting.measures(*measurer.voted_on(adapter_of(run, run.steps[-1])))
        return voting.VOTERS[labels](voted["base"], after)

    return Tools(train, work.costs_of, point, share)


def measured_by(plan: Plan, measurer: Measurer) -> dict[str, Any]:
    """Returns JSON values on which measurements depend besides the weights of the adapter."""
    images = ("per_prompt", "guard_per_prompt", "votes_per_prompt")
    counts = {name: getattr(plan, name) for name in images}
    return {**counts, "rewards": [*REWARDS], "seed": SEED, "base": measurer.digest}


def _spo() -> Contestant:
    return next(contestant for contestant in CONTESTANTS if contestant.name == "spo")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
