"""Operations of any method's run, counted from the layers of its programs: sampling, judging, decoding, training.

python -m benchmarks.costs --config=configs/sd15.py --prompts=4000
python -m benchmarks.costs --run=runs/toy

The run is an abstract one (`spo_jax.methods.base.Run.trace`): no weight is read or made, so Stable Diffusion at its
true size takes seconds to count. No method is named. What an operation belongs to follows from the program:

- which network it is part of: flax writes the class of every network into the name stack of its operations. The trained
  kind of network is the one that ``Pipeline.predict`` evaluates, the text encoders are those of ``encode_tokens``, and
  ``decode`` and ``encode`` are methods of an autoencoder. Any other network is a judge;
- whether it serves a gradient: ``jvp`` and ``transpose`` are in the name stack as well. Where a network is
  differentiated, all of its operations in the same body of a loop are **training**: the policy's forward and backward
  pass, activations that are computed again, and the reference's pass. Elsewhere, evaluations of the trained kind of
  network are **sampling** (also those that recover noises from images), and other networks are **judging**,
  **decoding** and **encoding** (of prompts and images).

Loops whose length is only known while they run are counted for one training batch, and multiplied by the number of
training batches, which a finished run has in its curves (``train_batches``). Prompts and images that a run encodes
before its first batch, and images that are drawn to look at, are no part of its batches and are not counted; the cost
of each is listed beside them.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

from benchmarks.aot import abstract_run, loop_trips
from benchmarks.flops import Operation, operations
from benchmarks.machines import span
from benchmarks.places import RESULTS
from benchmarks.recipes import MACHINES, SHARES, hours
from spo_jax.core.cli import run_command
from spo_jax.core.config_flag import define_config
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_writable, read_json_object, write_json
from spo_jax.core.run_files import START
from spo_jax.core.words import counted
from spo_jax.methods import read_settings
from spo_jax.methods.base import Run
from spo_jax.methods.common.model import open_model
from spo_jax.models.base import Pipeline
from spo_jax.parallel.mesh import make_mesh
from spo_jax.parallel.settings import MeshSettings
from spo_jax.run.metrics import FILE_NAME, read_metrics
from spo_jax.run.settings import RunSettings

CHIPS = ("TPU v5e", "TPU v6e", "TPU v5p", "A100", "H100")  # the beginnings of names in `MACHINES`
PARTS = ("sampling", "judging", "decoding", "encoding", "training")
TRAIN_BATCHES = "train_batches"  # the curve with the number of training batches in a batch of a run
Parts = dict[str, float]  # floating-point operations of each of `PARTS`

# The class of a network and its method in a name stack: "UNet", "jvp(UNet)/conv_in", "transpose(jvp(VAE.decode))".
_NETWORK = re.compile(r"(?:^|[/(])([A-Z]\w*(?:\.\w+)?)(?=[/)]|$)")
_GRADIENT = re.compile(r"\b(?:jvp|transpose)\(")


@dataclasses.dataclass(frozen=True)
class ProgramCosts:
    """Operations of one of a run's programs, over all devices.

    Attributes:
      call: of a call, without loops whose length is not known in advance.
      train_batch: of one training batch in such a loop; nothing if there is none.
    """

    call: Parts
    train_batch: Parts


@dataclasses.dataclass(frozen=True)
class Costs:
    """Operations of a run.

    Attributes:
      programs: its programs by name; each is called once for a batch of the run.
      train_batches: the most training batches of a batch: the loops of unknown length run that often if, for example,
        all pairs are valid.
      unet_forward: operations of an evaluation of the trained network for one latent, without guidance and adapter: the
        unit in which methods are compared.
      each: operations of what is done outside of the programs: ``prompt`` encoded for the model, ``image`` encoded by
        its autoencoder, ``image_decoded``.
    """

    programs: Mapping[str, ProgramCosts]
    train_batches: int
    unet_forward: float
    each: Mapping[str, float]

    def of_batch(self, train_batches: float | None = None) -> Parts:
        """Returns the operations of a batch of the run.

        Args:
          train_batches: number of training batches in it; None for the most.
        """
        many = self.train_batches if train_batches is None else train_batches
        return _sum(pair for costs in self.programs.values() for pair in ((1, costs.call), (many, costs.train_batch)))


def run_costs(settings: RunSettings) -> Costs:
    """Counts the operations of the programs of a run.

    They are those of all devices together; on several devices, chunks of another size may add a few rows of padding.

    Args:
      settings: settings of any method that has a text-to-image model.

    Raises:
      UserError: a model is not known.
    """
    settings = dataclasses.replace(settings, mesh=MeshSettings(data=1, fsdp=1))
    mesh = make_mesh(settings.mesh, jax.devices()[:1])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        run = abstract_run(settings, mesh)
        pipeline = getattr(run, "pipeline", None) or open_model(settings, mesh, abstract=True)
        return costs_of(run, run.trace(run.state_shapes()), pipeline)


def costs_of(run: Run, traced: Mapping[str, jax.stages.Traced], pipeline: Pipeline) -> Costs:
    """Counts the operations of programs that are traced already.

    Args:
      run: the run.
      traced: its programs by name.
      pipeline: the model that it trains or uses; it may be abstract.
    """
    alone = _alone(pipeline)
    trained, text = ({_network(operation) for operation in alone[name]} for name in ("network", "prompt"))
    programs = {
        name: _costs_of(operations(program), loop_trips(run, name), trained, text) for name, program in traced.items()
    }
    each = {name: sum(operation.flops for operation in found) for name, found in alone.items()}
    return Costs(programs, most_train_batches(run), each.pop("network"), each)


def total(costs: Costs, rows: Iterable[Mapping[str, Any]]) -> Parts:
    """Returns the operations of a finished run, or of a part of it.

    Args:
      costs: what `run_costs` returned for its settings.
      rows: rows of its curves, ``metrics.jsonl``. The row of batch 0 describes the state before training.
    """
    return _sum((1, costs.of_batch(row.get(TRAIN_BATCHES))) for row in rows if row["step"] > 0)


def most_train_batches(run: Run) -> int:
    """Returns the most training batches of a batch, where the run says so; see `spo_jax.methods.base.Run`."""
    return run.most_train_batches() if hasattr(run, "most_train_batches") else 1


def _alone(pipeline: Pipeline) -> dict[str, list[Operation]]:
    """Lists the operations of each network of a model by itself, for one latent, prompt or image."""
    ids = jax.ShapeDtypeStruct((1, *pipeline.token_shape), "int32")
    latent = jax.ShapeDtypeStruct((1, *pipeline.latent_shape), jnp.float32)
    image = jax.ShapeDtypeStruct((1, *pipeline.image_size, 3), jnp.float32)
    # Without shardings, which functions that are not jitted do not take from shapes.
    plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (pipeline.params, pipeline.text_params))
    params, text = plain
    condition = jax.eval_shape(pipeline.encode_tokens, text, ids)

    def predict(network, x, condition):
        return pipeline.predict(network, None, x, jnp.zeros(1), condition)

    return {
        "network": operations(predict, params[pipeline.TRAINED], latent, condition),
        "prompt": operations(pipeline.encode_tokens, text, ids),
        "image": operations(pipeline.encode, params["vae"], image),
        "image_decoded": operations(pipeline.decode, params["vae"], latent),
    }


def _costs_of(
    found: Sequence[Operation], trips: Sequence[float], trained: set[str | None], text: set[str | None]
) -> ProgramCosts:
    """Sums the operations of a program by what they belong to."""
    differentiated = {(_network(operation), operation.body) for operation in found if _is_of_gradient(operation)}
    call, train_batch = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
    for operation in found:
        network = _network(operation)
        part = "training" if (network, operation.body) in differentiated else _part(network, trained, text)
        parts = train_batch if operation.whiles else call
        parts[part] += operation.flops * math.prod(trips[: operation.whiles])
    return ProgramCosts(call, train_batch)


def _part(network: str | None, trained: set[str | None], text: set[str | None]) -> str:
    """Returns what a network is for where it is not differentiated; products outside of all are the adapter's."""
    if network is None or network in trained:
        return "sampling"
    method = network.partition(".")[2]
    if network in text or method == "encode":
        return "encoding"
    return "decoding" if method == "decode" else "judging"


def _network(operation: Operation) -> str | None:
    """Returns the class of the network that an operation is part of, with the method that is called; None if none."""
    for scope in operation.scopes:
        found = _NETWORK.search(scope)
        if found:
            return found[1]
    return None


def _is_of_gradient(operation: Operation) -> bool:
    return any(_GRADIENT.search(scope) for scope in operation.scopes)


def _sum(counted: Iterable[tuple[float, Parts]]) -> Parts:
    sums = dict.fromkeys(PARTS, 0.0)
    for times, parts in counted:
        for part, flops in parts.items():
            sums[part] += times * flops
    return sums


# The command


def chip_hours(flops: float) -> dict[str, list[float]]:
    """Returns the hours of one device of each kind of `CHIPS`, at both of `SHARES` of its peak."""
    machines = [next(machine for machine in MACHINES if machine.name.startswith(name)) for name in CHIPS]
    one = [dataclasses.replace(machine, devices=1) for machine in machines]
    return {name: hours(machine, flops / 1e12, 1) for name, machine in zip(CHIPS, one, strict=True)}


def batches_of(settings: RunSettings, prompts: int) -> int | None:
    """Returns the number of batches of a run; None if it depends on the number of prompts and that is 0."""
    if not hasattr(settings, "total_batches"):
        return getattr(settings, "train_steps", None)
    return settings.total_batches(prompts) if prompts else None


def table(costs: Costs) -> str:
    """Formats the operations of each program, and of a batch, as a Markdown table."""
    lines = [("TFLOP", *PARTS, "sum", "UNet evaluations"), ("---",) * (len(PARTS) + 3)]
    rows = []
    for name, program in costs.programs.items():
        if sum(program.call.values()):
            rows.append((f"{name}, a call", program.call))
        if sum(program.train_batch.values()):
            rows.append((f"{name}, a training batch", program.train_batch))
    many = f" with {costs.train_batches} training batches" if costs.train_batches > 1 else ""
    rows.append((f"a batch of the run{many}", costs.of_batch()))
    lines += [(name, *cells(parts, costs)) for name, parts in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells(parts: Parts, costs: Costs) -> list[str]:
    """Formats operations: TFLOP of each part and of all, and their sum in evaluations of the network."""
    flops = sum(parts.values())
    return [*(tflop(parts[part]) for part in PARTS), tflop(flops), f"{flops / costs.unet_forward:,.0f}"]


def tflop(flops: float) -> str:
    """Formats operations in TFLOP with three digits: ``1,230``, ``0.0123``; ``–`` for none."""
    value = flops / 1e12
    if not value:
        return "–"
    digits = 2 - math.floor(math.log10(value))
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def record(config: str, settings: RunSettings, costs: Costs, batches: float | None, done: Parts | None) -> dict:
    """Returns the content of a results file.

    Args:
      config: name of the config or of the run.
      settings: the settings.
      costs: their operations.
      batches: number of batches of the run; None if it is not known.
      done: operations of the whole run; None if the number of batches is not known.
    """
    return {
        "benchmark": "costs",
        "config": config,
        "method": settings.method,
        "batch": settings.batch_sizes(),
        **dataclasses.asdict(costs),
        "a_batch": costs.of_batch(),
        "batches": batches,
        "run": done,
        "unet_forwards": done and sum(done.values()) / costs.unet_forward,
        "chip_hours": done and chip_hours(sum(done.values())),
        "shares_of_peak": SHARES,
    }


def _report(found: Mapping[str, Any], costs: Costs) -> str:
    each = {"prompt": "a prompt encoded", "image": "an image encoded", "image_decoded": "an image decoded"}
    text = table(costs)
    text += f"\none evaluation of the UNet {tflop(costs.unet_forward)} TFLOP"
    text += "".join(f", {words} {tflop(costs.each[name])}" for name, words in each.items()) + "\n"
    if found["run"] is None:
        return f"{text}hours depend on the number of training prompts: --prompts=N\n"
    parts = ", ".join(f"{part} {tflop(flops)}" for part, flops in found["run"].items())
    text += f"{counted(found['batches'], 'batch')}: {parts} TFLOP; "
    text += f"{found['unet_forwards']:,.0f} evaluations of the UNet\n"
    low, high = (f"{share:.0%}" for share in SHARES)
    text += f"hours of one chip at {low} to {high} of its peak: "
    return text + ", ".join(f"{name} {span(*pair)}" for name, pair in found["chip_hours"].items()) + "\n"


def _of_folder(folder: Path) -> tuple[RunSettings, list[dict[str, Any]]]:
    """Reads the settings and the curves of a run.

    Raises:
      UserError: there is no run, or a file is damaged.
    """
    for name in (START, FILE_NAME):
        if not (folder / name).is_file():
            raise UserError(f"--run={folder}: no {name} here; expected the folder of a run that has finished a batch")
    return read_settings(read_json_object(folder / START)["settings"]), read_metrics(folder / FILE_NAME)


def run() -> None:
    """Runs the command."""
    config = define_config("toy")
    prompts = flags.DEFINE_integer("prompts", 0, "Number of training prompts, where the run has any (0: not said).", 0)
    folder = flags.DEFINE_string("run", "", "Count what the run in this folder has done; in place of --config.")
    out = flags.DEFINE_string("out", RESULTS, "Write the results to this folder.")

    def main(_: Sequence[str]) -> None:
        jax.config.update("jax_platforms", "cpu")  # this machine's accelerators are left alone
        if folder.value and flags.FLAGS["config"].present:
            raise UserError("--run has the settings of its run: expected no --config beside it")
        check_writable(out.value)
        if folder.value:
            name = Path(folder.value).resolve().name
            settings, rows = _of_folder(Path(folder.value))
            costs = run_costs(settings)
            batches, done = sum(row["step"] > 0 for row in rows), total(costs, rows)
        else:
            name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
            settings = read_settings(config.value)
            costs = run_costs(settings)
            batches = batches_of(settings, prompts.value)
            done = None if batches is None else _sum([(batches, costs.of_batch())])
        found = record(name, settings, costs, batches, done)
        path = Path(out.value) / f"costs-{name}.json"
        write_json(path, found)
        print(_report(found, costs), end="")
        print(f"written to {path}")

    run_command(main)


if __name__ == "__main__":
    run()
