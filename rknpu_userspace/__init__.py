# SPDX-License-Identifier: MIT
"""Userspace library for the RK3588 NPU on the mainline rocket driver: Python and numpy, nothing else.

    import rknpu_userspace

    with rknpu_userspace.open("/dev/accel/accel0", cores=3) as npu:      # or "model"
        c = npu.matmul(a, b)                                             # int8 -> int32, float16 -> float32
        y = npu.conv2d(x, weights, bias, stride=2, padding=1, scale=0.01)

Nothing is imported before it is used: start-up counts on a board.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .device import Device, open_device
    from .device import open_device as open
    from .errors import DeviceError, JobError, NpuError
    from .graph.graph import Graph
    from .graph.program import GraphProgram
    from .ops.activation import Activation, PRelu, UnaryScales
    from .ops.chain import Chain
    from .ops.conv2d import Conv2d
    from .ops.elementwise import Binary, Scales
    from .ops.int16 import Int16Matmul
    from .ops.matmul import Matmul
    from .ops.pool import Pool2d, average_pool
    from .ops.reduce import Reduce
    from .ops.rows import RowOperation
    from .ops.transposed import ConvTranspose2d
    from .program import Program

_HOMES = {
    "Activation": "ops.activation",
    "Binary": "ops.elementwise",
    "Chain": "ops.chain",
    "Conv2d": "ops.conv2d",
    "ConvTranspose2d": "ops.transposed",
    "Device": "device",
    "DeviceError": "errors",
    "Graph": "graph.graph",
    "GraphProgram": "graph.program",
    "Int16Matmul": "ops.int16",
    "JobError": "errors",
    "Matmul": "ops.matmul",
    "NpuError": "errors",
    "PRelu": "ops.activation",
    "Pool2d": "ops.pool",
    "Program": "program",
    "Reduce": "ops.reduce",
    "RowOperation": "ops.rows",
    "Scales": "ops.elementwise",
    "UnaryScales": "ops.activation",
    "average_pool": "ops.pool",
    "open_device": "device",
}
__all__ = [
    "Activation",
    "Binary",
    "Chain",
    "Conv2d",
    "ConvTranspose2d",
    "Device",
    "DeviceError",
    "Graph",
    "GraphProgram",
    "Int16Matmul",
    "JobError",
    "Matmul",
    "NpuError",
    "PRelu",
    "Pool2d",
    "Program",
    "Reduce",
    "RowOperation",
    "Scales",
    "UnaryScales",
    "average_pool",
    "open",
    "open_device",
]


def __getattr__(name: str) -> Any:
    if name == "open":
        return import_module(".device", __name__).open_device
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
