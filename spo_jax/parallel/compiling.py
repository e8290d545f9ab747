"""Compiling programs for the devices of the mesh in context."""

from collections.abc import Callable
from typing import Any

import jax
from jax.stages import Wrapped

# Memory on the chip, in KiB, that an operation of XLA may take: half of what the chip has. The compiler's default is
# 16 MiB on all of them, which keeps tiles small: by its own estimates for v5e, a convolution of SD 1.5's UNet takes
# 15.8 ms with 16 MiB, 8.7 with 32 and 7.4 with 64, and a layer of CLIP ViT-H less than half. Chips that are not named
# have less memory, or were not looked at.
_TILES = {"TPU v5 lite": 64 * 1024, "TPU v6": 64 * 1024}

# Weights that are cut over devices (`mesh.fsdp`) are gathered before they are used. By default the compiler passes
# slices of large ones around instead and computes with one at a time. An eighth of the 128 features of a convolution
# fills an eighth of the matrix unit, and each slice's images are copied: by its own estimates decoding with SD 1.5's
# autoencoder takes 5.6 times as long on eight chips of v5e (docs/parallel.md).
# The number is the size in MiB from which on it does so.
_NO_SLICES = 1_000_000


def compiler_options() -> dict[str, int]:
    """Returns XLA's options for the chips of the mesh in context, or else of the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    if not device.device_kind.startswith("TPU"):
        return {}
    options = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": _NO_SLICES}
    for kind, tiles in _TILES.items():
        if device.device_kind.startswith(kind):
            options["xla_tpu_scoped_vmem_limit_kib"] = tiles
    return options


def device_jit(function: Callable[..., Any], **how: Any) -> Wrapped:
    """Returns `jax.jit` of a function that is called where it is made, with `compiler_options`.

    Small programs, such as those that encode texts, do without.

    Args:
      function: the function.
      how: arguments of `jax.jit`.
    """
    return jax.jit(function, compiler_options=compiler_options(), **how)


def compile_program(traced: jax.stages.Traced) -> jax.stages.Compiled:
    """Compiles a traced program for the devices of the mesh in context."""
    return traced.lower().compile(compiler_options() or None)
