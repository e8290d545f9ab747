"""Operations of runs, in evaluations of the UNet, and the seconds that they took."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.costs import Costs, Parts, ProgramCosts, run_costs, total
from spo_jax.run.settings import RunSettings

TRAIN_BATCHES = "train_batches"
_SECONDS = "seconds"


def costs_of(settings: RunSettings) -> dict[str, Any]:
    """Counts the operations of a run's programs, as JSON values."""
    return dataclasses.asdict(run_costs(settings))


def read_costs(found: Mapping[str, Any]) -> Costs:
    """Reads what `costs_of` returned."""
    programs = {name: ProgramCosts(**parts) for name, parts in found["programs"].items()}
    return Costs(**{**found, "programs": programs})


def per_batch(costs: Costs, share: float) -> float:
    """Returns the work of a batch.

    Args:
      costs: operations of the run's programs.
      share: share of the most training batches that are trained on.
    """
    return sum(costs.of_batch(share * costs.train_batches).values()) / costs.unet_forward


def done(costs: Costs, rows: Sequence[Mapping[str, Any]], step: int) -> Parts:
    """Returns the work of the first ``step`` batches by its parts.

    Args:
      costs: operations of the run's programs.
      rows: rows of the run's curves.
      step: number of batches.
    """
    counted = total(costs, [row for row in rows if row["step"] <= step])
    return {name: flops / costs.unet_forward for name, flops in counted.items()}


def seconds_of(rows: Sequence[Mapping[str, Any]], step: int) -> float:
    """Returns the seconds that the programs of the first ``step`` batches took, without compiling and saving."""
    return sum(
        value
        for row in rows
        if 0 < row["step"] <= step
        for name, value in row.items()
        if name.partition("/")[0] == _SECONDS and value is not None
    )


def share_of(costs: Costs, rows: Sequence[Mapping[str, Any]]) -> float:
    """Returns the share of the most training batches that a run has trained on."""
    found = [row[TRAIN_BATCHES] for row in rows if row.get(TRAIN_BATCHES) is not None]
    return sum(found) / len(found) / costs.train_batches if found else 1.0
