# SPDX-License-Identifier: MIT
"""What a convolution task costs, read from its command words alone: the model's own accounting without the arithmetic.

For comparing plans of layers that are too large to be computed every time. A test holds that these figures equal what
the model counts when it runs the task.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rknpu_userspace.isa import Block

from . import image, pc
from .conv_task import ConvTask, read_config
from .cost import MACS_PER_CYCLE, Meter
from .dpu_rdma import operand_bytes
from .errors import Unsupported
from .memory import ATOM
from .precision import atom_channels, byte_size
from .registers import BLOCK_INDEX, BLOCKS, GROUP_SIZE, Fields, decode


def convolution(words: npt.NDArray[np.uint64]) -> Meter:
    """Bytes by DMA unit, multiply-accumulates and cycles of a convolution from memory to memory.

    Raises IllegalConfig where a register breaks a rule, Unsupported for other kinds of task and for what is not
    modelled.
    """
    groups = [[0] * GROUP_SIZE for _ in BLOCKS]
    enabled: tuple[Block, ...] = ()
    for kind, block, index, value, text in pc.Decoder().decode(words.view(np.uint8)):
        if kind == pc.WRITE:
            groups[block][index] = value
        elif kind == pc.ENABLE:
            enabled = pc.enabled_blocks(value)
        elif kind == pc.UNKNOWN:
            raise Unsupported(text)
    if Block.CNA not in enabled or Block.DPU not in enabled:
        raise Unsupported(f"not a convolution: it enables {' '.join(block.name for block in enabled) or 'nothing'}")
    fields = {block: decode(block, groups[BLOCK_INDEX[block]]) for block in enabled}
    task = read_config(fields[Block.CNA])
    meter = Meter(macs=task.macs, mac_cycles=task.mac_cycles(), peak_macs=MACS_PER_CYCLE[task.code])
    meter.op = task.describe()
    meter.dma("pc", 8 * len(words))
    _operands(meter, fields[Block.CNA], task)
    dpu = fields[Block.DPU]
    if Block.DPU_RDMA in fields:
        rdma = fields[Block.DPU_RDMA]
        if not rdma["MRDMA_DISABLE"] or not rdma["ERDMA_DISABLE"]:
            raise Unsupported("a convolution with an element-wise operand")
        if rdma["BRDMA_DATA_USE"]:
            meter.dma("brdma", operand_bytes(rdma["BRDMA_DATA_USE"], dpu["CHANNEL"] + 1))
    meter.dpu_atoms = task.pixels * -(-(dpu["CHANNEL"] + 1) // atom_channels(dpu["OUT_PRECISION"]))
    meter.dma("wdma", meter.dpu_atoms * ATOM)
    return meter


def _operands(meter: Meter, f: Fields, task: ConvTask) -> None:
    """What the CNA fetches; nothing for an operand that it finds in the CBUF."""
    if not f["DATA_REUSE"]:
        channels = image.channels(f) if image.is_image(f) else task.channels
        meter.dma("feature", byte_size(task.code, task.height * task.width * channels))
    if not f["WEIGHT_REUSE"]:
        meter.dma("weight", byte_size(task.code, task.taps * task.channels * task.kernels))
