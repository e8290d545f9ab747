"""What a backward pass keeps of a forward pass, with and without gradient checkpointing (`remat`); printed alone.

python -m benchmarks.activations --config=configs/sd15.py --topology=v5e:1x1

It is counted from the traced program for one latent of a pair, guided, before XLA merges anything, so a compiled
program may keep less; nothing is compiled or run. A topology decides the kind of attention: without one it is that of
this machine, whose plain attention also keeps its score matrices.
"""

import contextlib
import dataclasses
import io
import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import flags
from jax.ad_checkpoint import print_saved_residuals

from benchmarks.aot import abstract_run
from benchmarks.topologies import GIB, find_topology
from spo_jax.core.cli import run_command
from spo_jax.core.config_flag import define_config
from spo_jax.core.typing import Array, Params, PyTree
from spo_jax.methods import read_settings
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.nn.remat import KEEPS
from spo_jax.parallel.mesh import make_mesh

_LINE = re.compile(r"^(\w+)\[([\d,]*)\] (.*)$", re.MULTILINE)  # such as "bf16[2,64,64,320] output of mul from …"
_SIZES = {"f32": 4, "i32": 4, "bf16": 2, "f16": 2, "u8": 1, "bool": 1}


def kept_bytes(settings: SPOTrainSettings, devices: Sequence[jax.Device]) -> int:
    """Returns the bytes that the gradient of one guided prediction keeps beside the weights.

    Args:
      settings: settings of SPO.
      devices: one device, which decides the kind of attention.
    """
    settings = settings.with_batch_sizes(dict.fromkeys(settings.batch_sizes(), 1))
    mesh = make_mesh(settings.mesh, devices)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        run = abstract_run(settings, mesh)
        frozen, state = run.spo.frozen_shapes(), run.state_shapes()

        def predicted(lora: Params, network: Params, condition: PyTree, unconditional: PyTree, x: Array) -> Array:
            predict = run.spo.policy.predictor(network, condition, unconditional)
            return predict(lora, x, jnp.full((1,), 500), jnp.zeros((1,), int)).sum()

        x = jax.ShapeDtypeStruct((1, *run.pipeline.latent_shape), jnp.float32)
        arguments = state.params, frozen.network, run.spo.feature_shapes().condition, frozen.unconditional
        # Without shardings, which eager rules of differentiation do not take from shapes.
        arguments = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            print_saved_residuals(predicted, *arguments, x)
    return sum_of(text.getvalue())


def sum_of(residuals: str) -> int:
    """Returns the bytes of the residuals that jax has printed, without a function's arguments."""
    return sum(
        math.prod(int(side) for side in shape.split(",") if side) * _SIZES[dtype]
        for dtype, shape, source in _LINE.findall(residuals)
        if not source.startswith("from the argument")
    )


def run() -> None:
    """Runs the command."""
    config = define_config()
    topology = flags.DEFINE_string("topology", "", "Count for this TPU, such as v5e:1x1 (default: this machine).")

    def main(_: Sequence[str]) -> None:
        jax.config.update("jax_platforms", "cpu")  # this machine's accelerators are left alone
        devices = find_topology(topology.value) if topology.value else jax.devices()
        for remat, keeps in (*((True, keeps) for keeps in KEEPS), (False, "all")):
            fields = {"remat": remat} | ({"remat_keeps": keeps} if remat else {})
            settings = dataclasses.replace(read_settings(config.value), **fields)
            kept = kept_bytes(settings, devices[:1]) / GIB
            print(f"remat = {remat!s:5} {keeps:8} {kept:6.2f} GiB for a latent of a pair", flush=True)

    run_command(main)


if __name__ == "__main__":
    run()
