"""Floating-point operations of a program, counted from its layers and by XLA, and the peaks of devices.

`count` walks the jaxpr. It counts matrix products and convolutions, a multiplication and an addition as two operations,
and the bodies of loops as often as they run. Everything else (norms, activations, softmax, resizing) is left out, as in
published counts; it is a few per cent of the work, and the devices' peaks are not about it. Convolutions that CPUs fill
up to a multiple of 16 features (`spo_jax/nn/convolution.py`) count with what they compute: of SD 1.5, SDXL and the toy
none is, of the size ``small`` those with 56 features.

XLA's own count looks at the optimised program. It includes element-wise work and counts the body of every loop once.
`count` can count loops once too (``loops_once``), so that the two can be compared.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

# Dense 16-bit multiply-adds, times two, per second and device, from the makers' data sheets, without sparsity. The
# first name that a device kind contains is taken, so longer names come before their beginnings.
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

# cuDNN's attention is one primitive, which stands for this number of matrix products of size
# batch · heads · queries · keys · head size. The backward pass needs four for its gradients; the fifth, of the scores,
# is a recomputation and is not counted.
_CUDNN_ATTENTION = {"dot_product_attention_fwd": 2, "dot_product_attention_bwd": 4}
_BTNH = 0  # the layout [batch, tokens, heads, head size]; the other one has heads before tokens

# A function, or a program that has been traced already.
Countable = Callable | core.ClosedJaxpr | jax.stages.Traced


def peak_flops(device: jax.Device) -> float | None:
    """Returns the device's peak in 16-bit operations per second; None where it is not known, as for CPUs."""
    return next((peak for name, peak in PEAKS if name in device.device_kind), None)


class Operation(NamedTuple):
    """A matrix product or a convolution of a program.

    Attributes:
      flops: its operations, as often as the loops of known length around it run.
      scopes: the name stacks of it and of the equations around it, outermost first, such as "jvp(UNet)/conv_in".
      body: positions of the equations from the program down to the innermost loop around it, which identify its body.
      whiles: number of loops around it whose length is not known in advance.
    """

    flops: float
    scopes: tuple[str, ...]
    body: tuple[int, ...]
    whiles: int


def operations(program: Countable, *args: Any, loops_once: bool = False) -> list[Operation]:
    """Lists the matrix products and convolutions of a program; nothing is computed.

    Args:
      program: a function, a closed jaxpr, or what `jax.jit(...).trace` returns.
      *args: arguments of a function, as arrays or shapes; none for a program that has been traced already.
      loops_once: whether the body of every loop is counted once, as XLA does.
    """
    if isinstance(program, core.ClosedJaxpr):
        closed = program
    elif isinstance(program, jax.stages.Traced):
        closed = program.jaxpr
    else:
        closed = jax.make_jaxpr(program)(*args)
    return list(_operations(closed.jaxpr, Operation(1, (), (), 0), (), loops_once))


def count(program: Countable, *args: Any, while_trips: Sequence[float] = (), loops_once: bool = False) -> float:
    """Counts the operations of a program from its layers; nothing is computed.

    Args:
      program: see `operations`.
      *args: see `operations`.
      while_trips: how often loops run whose length is not known in advance, outermost first (the loops of SPO's update
        run over training batches and, in each batch, over its chunks); loops further inside are taken to run once.
      loops_once: see `operations`; also for loops of unknown length.
    """
    trips = () if loops_once else while_trips
    found = operations(program, *args, loops_once=loops_once)
    return sum(operation.flops * math.prod(trips[: operation.whiles]) for operation in found)


def _operations(jaxpr: core.Jaxpr, around: Operation, path: tuple[int, ...], once: bool) -> Iterator[Operation]:
    """Yields the operations of a jaxpr at ``path``; the flops of ``around`` are the turns of the loops around it."""
    for position, equation in enumerate(jaxpr.eqns):
        yield from _of_equation(equation, around, (*path, position), once)


def _of_equation(equation: Any, around: Operation, path: tuple[int, ...], once: bool) -> Iterator[Operation]:
    name = equation.primitive.name
    params = equation.params
    stack = str(equation.source_info.name_stack)
    here = around._replace(scopes=(*around.scopes, stack)) if stack else around
    own = _own_flops(equation, name)
    if own is not None:
        yield here._replace(flops=here.flops * own)
        return
    here = here._replace(flops=here.flops * _times(name, params, once))
    if name in ("scan", "while"):
        here = here._replace(body=path, whiles=here.whiles + (name == "while"))
    inner = [list(_operations(jaxpr, here, (*path, n), once)) for n, jaxpr in enumerate(inner_jaxprs(params))]
    if name == "cond":  # one branch runs, and all branches cost the same wherever this package branches
        inner = [max(inner, key=lambda branch: sum(operation.flops for operation in branch))]
    for found in inner:
        yield from found


def _own_flops(equation: Any, name: str) -> float | None:
    """Counts an equation that is an operation itself; None for one that may hold others, or that is not counted."""
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "pallas_call" and equation.params.get("cost_estimate") is not None:
        return equation.params["cost_estimate"].flops  # its body has the padding too
    attention = next((factor for start, factor in _CUDNN_ATTENTION.items() if name.startswith(start)), None)
    return None if attention is None else attention * _attention_product(equation)


def _times(name: str, params: dict[str, Any], once: bool) -> float:
    """Returns how often the body of an equation runs, where that is known."""
    if name == "scan":
        return 1 if once else params["length"]
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    if name == "shard_map":  # its body is one device's share; the parameter's name differs between versions of jax
        axes = next(value for key, value in params.items() if key.endswith("manual_axes"))
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    return 1


def inner_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """Yields the jaxprs among an equation's parameters."""
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
    """Counts a convolution: with the zeros around an image, without those that a transposed one puts between inputs."""
    kernel = equation.invars[1].aval.shape
    numbers = equation.params["dimension_numbers"]
    per_output = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    between = math.prod(equation.params["lhs_dilation"])
    return 2 * math.prod(equation.outvars[0].aval.shape) * per_output / between


def _attention_product(equation: Any) -> float:
    query, key = (variable.aval.shape for variable in equation.invars[:2])
    tokens = 1 if equation.params["layout"] == _BTNH else 2
    return 2 * math.prod(query) * key[tokens]


def xla_flops(compiled: Any) -> float | None:
    """Returns XLA's count for a compiled program, the body of every loop once; None where the backend has no count."""
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) and analysis else analysis
    flops = (analysis or {}).get("flops")
    return float(flops) if flops and flops > 0 else None
