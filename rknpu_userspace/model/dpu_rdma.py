# SPDX-License-Identifier: MIT
"""DPU_RDMA: the feeds of the DPU from memory: main data, BS and BN operands, element-wise operand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .context import Context
from .errors import IllegalConfig, Unsupported, require, require_zero
from .memory import ATOM
from .precision import Array
from .registers import Fields
from .stages import Operands, is_float

_USE_ALU, _USE_ZERO_POINT, _USE_MUL, _USE_TRT = 1, 2, 4, 8
COMB_OPERAND = 5


@dataclass
class Feeds:
    """What DPU_RDMA delivers."""

    main: Array | None = None
    bs: Operands = field(default_factory=Operands)
    bn: Operands = field(default_factory=Operands)
    operand: Array | None = None


def check(f: Fields, dpu: Fields) -> None:
    """Check the registers against the DPU's."""
    require_zero(f, "DPU_RDMA", ("UNPOOLING_EN", "ERDMA_SURF_MODE", "ERDMA_NONALIGN"))
    for name in ("WIDTH", "HEIGHT", "CHANNEL"):
        require(f[name] == dpu[name], f"DPU_RDMA {name} {f[name]} differs from the DPU's {dpu[name]}")
    require(
        f["FLYING_MODE"] == dpu["FLYING_MODE"],
        f"DPU_RDMA FLYING_MODE {f['FLYING_MODE']} differs from the DPU's {dpu['FLYING_MODE']}",
    )
    if not f["FLYING_MODE"] and not f["MRDMA_DISABLE"] and f["COMB_USE"] == 0:
        raise IllegalConfig("the main feed (MRDMA) is enabled, but nothing consumes it: not flying and COMB_USE 0")


def feed(ctx: Context, f: Fields, dpu: Fields) -> Feeds:
    """Read what the registers ask for."""
    feeds = Feeds()
    channels = dpu["CHANNEL"] + 1
    if f["BRDMA_DATA_USE"]:
        feeds.bs = _operands(ctx, "brdma", f["BRDMA_DATA_USE"], f["BS_BASE_ADDR"], channels, dpu)
    if f["NRDMA_DATA_USE"]:
        feeds.bn = _operands(ctx, "nrdma", f["NRDMA_DATA_USE"], f["BN_BASE_ADDR"], channels, dpu)
    if f["FLYING_MODE"] or not f["MRDMA_DISABLE"]:
        raise Unsupported("DPU_RDMA main feed")
    if not f["ERDMA_DISABLE"]:
        raise Unsupported("DPU_RDMA element-wise operand feed")
    return feeds


def _operands(ctx: Context, unit: str, use: int, base: int, channels: int, dpu: Fields) -> Operands:
    """Per-channel operands of BS or BN; ``use`` says what the stream holds."""
    require(base % ATOM == 0, f"{unit} base {base:#x} is not 16-byte aligned")
    if use == _USE_ALU:
        raw = ctx.port.read(base, 4 * channels)
        ctx.meter.dma(unit, len(raw))
        kind = np.float32 if is_float(dpu["PROC_PRECISION"]) else np.int32
        return Operands(alu=raw.view(kind).copy())
    raise Unsupported(f"DPU_RDMA {unit} DATA_USE {use:#x}")
