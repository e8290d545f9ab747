"""The adapter that methods train: its first state, and the file it ends as."""

from pathlib import Path

import jax
import optax
from jax.sharding import Mesh

from spo_jax.core.typing import Key, Params
from spo_jax.methods.common.settings import AdapterSettings, LoRASettings
from spo_jax.methods.common.state import TrainState, init_state
from spo_jax.models.base import Pipeline
from spo_jax.models.lora import write_lora
from spo_jax.nn.lora import init_lora
from spo_jax.parallel.multihost import is_writer
from spo_jax.parallel.sharding import make

FILE = "lora.safetensors"


def fresh_adapter(
    pipeline: Pipeline, lora: LoRASettings, optimizer: optax.GradientTransformation, mesh: Mesh, key: Key
) -> TrainState:
    """The state before the first batch, whole on every device."""
    network = pipeline.params[pipeline.TRAINED]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), network)
    return make(lambda key: init_state(init_lora(key, shapes, lora.rank), optimizer), mesh, key)


def write_adapter(folder: Path, settings: AdapterSettings, params: Params, method: str) -> None:
    """Writes ``lora.safetensors``, in one of the processes.

    Args:
      method: what made it, for the file's metadata.
    """
    if is_writer():
        metadata = {"base_model": settings.model, "method": method}
        write_lora(folder / FILE, settings.lora.adapter(params), metadata=metadata)
