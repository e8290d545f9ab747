"""Floating-point operations of a program, counted from its layers and by XLA, and what devices could do at best.

`count` walks the jaxpr: matrix products and convolutions, a multiplication and an addition counted apart, bodies of
loops as often as they run. Everything else (norms, activations, softmax, resizing) is left out, as in published
counts; it is a few per cent of the work and is not what the devices' peaks are about.

XLA's own count looks at the optimised program. It knows element-wise work as well, and counts a loop's body once; so
`count` can do that too (``loops_once``), and the two can be compared.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core

# Dense 16-bit multiply-adds, times two, per second and device: makers' data sheets, without sparsity. A device kind
# is found by the first name that it contains, so longer names come before their beginnings.
PEAKS: tuple[tuple[str, float], ...] = (
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("GH200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
    ("TPU v3", 123e12),
    ("TPU v2", 45e12),
)

# cuDNN's attention is one primitive: matrix products of size batch · heads · queries · keys · head size in it. The
# backward pass needs four for its gradients; the fifth, of the scores, is a recomputation and not counted.
_CUDNN_ATTENTION = {"dot_product_attention_fwd": 2, "dot_product_attention_bwd": 4}
_BTNH = 0  # the layout [batch, tokens, heads, head size]; the other one has heads before tokens


def peak_flops(device: jax.Device) -> float | None:
    """What the device could do in a second, 16-bit floats; None where it is not known (CPUs among them)."""
    return next((peak for name, peak in PEAKS if name in device.device_kind), None)


def count(function: Callable, *args: Any, while_trips: Sequence[float] = (), loops_once: bool = False) -> float:
    """Operations of ``function(*args)``; nothing is computed, and the arguments may be shapes.

    Args:
      while_trips: how often loops run whose length is not known before, outermost first (the update's: over training
        batches, and in each over its chunks); 1 for those beyond.
      loops_once: count the body of every loop once, as XLA does.
    """
    closed = jax.make_jaxpr(function)(*args)
    return _count(closed.jaxpr, tuple(while_trips), loops_once)


def _count(jaxpr: core.Jaxpr, trips: tuple[float, ...], once: bool) -> float:
    return sum(_of_equation(equation, trips, once) for equation in jaxpr.eqns)


def _of_equation(equation: Any, trips: tuple[float, ...], once: bool) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    attention = next((factor for start, factor in _CUDNN_ATTENTION.items() if name.startswith(start)), None)
    if attention is not None:
        return attention * _attention_product(equation)
    trip, *deeper = trips if name == "while" and trips else (1, *trips)
    inner = [_count(jaxpr, tuple(deeper), once) for jaxpr in _inner(params)]
    if name == "cond":  # one branch runs; they cost the same wherever this package branches
        return max(inner)
    return _times(name, params, trip, once) * sum(inner)


def _times(name: str, params: dict[str, Any], trip: float, once: bool) -> float:
    """How often the body of an equation runs."""
    if name == "scan":
        return 1 if once else params["length"]
    if name == "while":
        return 1 if once else trip
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    if name == "shard_map":  # its body is one device's share; the name of the axes changes with jax's versions
        axes = next(value for key, value in params.items() if key.endswith("manual_axes"))
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    return 1


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
    """Zeros that a transposed convolution puts between its inputs are not counted; those around pictures are."""
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    per_output = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    between = math.prod(equation.params["lhs_dilation"])
    return 2 * math.prod(equation.outvars[0].aval.shape) * per_output / between


def _attention_product(equation: Any) -> float:
    query, key = (variable.aval.shape for variable in equation.invars[:2])
    tokens = 1 if equation.params["layout"] == _BTNH else 2
    return 2 * math.prod(query) * key[tokens]


def xla_flops(compiled: Any) -> float | None:
    """XLA's count of a compiled program, every loop's body once; None where the backend does not tell."""
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) and analysis else analysis
    flops = (analysis or {}).get("flops")
    return float(flops) if flops and flops > 0 else None
