"""What a trajectory of SPO takes on a chip, from the estimated seconds of its programs or of their parts.

A trajectory is one prompt's rollout with its judgement, and the training on its valid pairs. A rollout and one training
batch are either programs that were compiled whole, or put together from parts (`benchmarks.parts`): the network for a
pool at every step, less for the steps before there are pools; decoder and judge for every chunk of images; gradients
for every chunk of pairs. What lies between the parts (noise, steps of the process, the optimizer) is then left out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.parts import rows_of_part
from spo_jax.methods.base import Run
from spo_jax.methods.spo.method import SPORun
from spo_jax.methods.spo.objectives import objective_of
from spo_jax.methods.spo.plan import make_plan

VALID = 0.5  # the share of pairs that are taken to be valid; with all of them, an update takes twice as long
# Lengths of a run in trajectories: the published 4,000 prompts times 10 epochs, and 500 prompts twice.
PUBLISHED = 40_000
SMALL = 1_000
_ROLLOUT = ("decode", "unet", "judge")  # the parts of a rollout


def repeats(run: Run) -> dict[str, float]:
    """Returns how much a chip does in a batch of SPO; nothing for other methods.

    Args:
      run: the run, whose mesh is in context.

    Returns:
      ``prompts``, ``pairs`` of a rollout and of a ``train_batch``, and how often each of `benchmarks.parts.PARTS` is
      computed: ``update`` in a training batch, the others in a rollout.
    """
    if not isinstance(run, SPORun):
        return {}
    settings = run.settings
    chips = run.mesh.size
    spo = settings.spo
    plan = make_plan(spo)
    prompts = settings.prompts_per_batch // chips

    def chunks(pools: int) -> int:  # of as many images as are decoded and judged at a time
        return -(-prompts * spo.num_candidates * pools // (rows_of_part(run, "decode") // chips))

    judged = len(plan.judged_at) + 1
    late = spo.second_steps if spo.second_reward else 0
    if spo.judged == "noisy":  # the network sees a pool, and the decoder its images, where a second judge asks for them
        pools, decoded = max(late - 1, 0), late
    else:
        pools, decoded = len(plan.branches), judged
    return {
        "prompts": prompts,
        "pairs": prompts * objective_of(spo).count(plan),
        "train_batch": spo.train_batch_size // chips,
        "unet": pools + (spo.num_steps - pools) / spo.num_candidates,
        "decode": chunks(decoded),
        "judge": chunks(judged + late),
        "update": -(-spo.train_batch_size // spo.chunk(chips)),
    }


def trajectory(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the seconds of a rollout, of a training batch and of a trajectory; None if a rollout is not known.

    Args:
      record: what `benchmarks.aot` measured with ``--cycles``.

    Returns:
      ``rollout`` in seconds of a chip, its ``mfu``, and ``basis``: ``programs`` or ``parts``. If the update was
      compiled too, the seconds of a ``train_batch``, and of a ``trajectory`` with a share `VALID` of valid pairs.
    """
    cycles = {name: program["cycles"] for name, program in record["programs"].items() if "cycles" in program}
    times = next((program["repeats"] for program in record["programs"].values() if "repeats" in program), None)
    if not times:
        return None
    work = {name: program["flops_layers"] for name, program in record["programs"].items()}
    if "collect" in cycles:
        basis = {"collect": 1}
    elif set(_ROLLOUT) <= cycles.keys():
        basis = {part: times[part] for part in _ROLLOUT}
    else:
        return None
    rollout = sum(turns * cycles[name]["seconds"] for name, turns in basis.items())
    flops = sum(turns * work[name] for name, turns in basis.items())
    found = {
        "rollout": rollout,
        "mfu": flops / (rollout * record["chip"]["peak_flops"]),
        "basis": "programs" if "collect" in cycles else "parts",
    }
    if "update" in cycles:
        # A program's cycles are those of a whole training batch, a part's those of a chunk of it.
        update = cycles["update"]["seconds"] * (1 if "collect" in cycles else times["update"])
        seconds = (rollout + update * VALID * times["pairs"] / times["train_batch"]) / times["prompts"]
        found |= {"train_batch": update, "trajectory": seconds}
    return found


_ABOUT = f"""# Estimated seconds on TPUs, without one

Written by `python -m benchmarks.aot --cycles`, or from its parts by `--part=decode,unet,judge,update`. The seconds are
those of one chip by the compiler's own estimates (`benchmarks/cycles.py` says what is counted and how), not
measurements: ratios between two rows are what to trust. A trajectory is one prompt's rollout, judged, and the training
on its pairs, of which {VALID:.0%} are taken to be valid. Hours are those of all chips together, of 1,000 trajectories
(500 prompts, twice) and of the published 40,000 (4,000 prompts, ten times). Parts are compiled one by one, so a row may
be older than others; [machines](../../docs/machines.md#one-tpu-v5e-chip) says which one is.
"""


def trajectories_table(
    records: Sequence[Mapping[str, Any]], batch_of: Callable[[Mapping[str, Any]], str], about: bool = True
) -> str:
    """Formats records as two Markdown tables: of trajectories, and of all programs and parts.

    Args:
      records: what `benchmarks.aot` measured with ``--cycles``.
      batch_of: description of a record's batch.
      about: whether to begin with what the tables are.
    """
    whole = [("config", "topology", "batch of a chip", "rollout", "its MFU", "training batch", "trajectory", "hours",
              "from", "effort")]  # fmt: skip
    each = [("config", "topology", "batch of a chip", "program", "seconds", "at peak", "MFU", "products, kernels",
             "copies", "networks", "temporaries")]  # fmt: skip
    for record in records:
        start = record["config"], record["topology"], batch_of(record)
        found = trajectory(record)
        if found:
            whole.append((*start, *_trajectory_cells(record, found)))
        programs = {name: program for name, program in record["programs"].items() if "cycles" in program}
        each += [(*start, name, *_program_cells(program)) for name, program in programs.items()]
    tables = [_markdown(rows) for rows in (whole, each) if len(rows) > 1]
    return "\n".join(([_ABOUT] if about else []) + tables)


def _trajectory_cells(record: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, ...]:
    hours = [found.get("trajectory", 0) * count / 3600 / record["chips"] for count in (SMALL, PUBLISHED)]
    trained = "trajectory" in found
    efforts = sorted({f"{program['effort']:g}" for program in record["programs"].values()})
    return (
        f"{found['rollout']:.1f} s",
        f"{found['mfu']:.0%}",
        f"{found['train_batch']:.2f} s" if trained else "-",
        f"{found['trajectory']:.2f} s" if trained else "-",
        ", ".join(f"{value:.3g}" for value in hours) if trained else "-",
        found["basis"],
        ", ".join(efforts),
    )


def _program_cells(program: Mapping[str, Any]) -> tuple[str, ...]:
    cycles = program["cycles"]
    total = cycles["seconds"]
    shares = [f"{name} {sum(kinds.values()) / total:.0%}" for name, kinds in cycles["networks"].items()]
    return (
        f"{total:.4g}",
        f"{program['seconds_at_peak']:.3g}",
        f"{cycles['mfu']:.0%}",
        f"{cycles['share_of_products']:.0%}",
        f"{cycles['kinds']['copies'] / total:.0%}",
        ", ".join(shares[:4]),
        f"{program['temp_bytes'] / 2**30:.2f} GiB",
    )


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
