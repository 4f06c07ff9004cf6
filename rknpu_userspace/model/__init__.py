# SPDX-License-Identifier: MIT
"""An executable specification of the NPU core of the RK3588: one module per hardware block.

``pc`` fetches and decodes command words, ``registers`` holds the two register groups of each block, ``cna`` fetches
features and weights, ``core`` multiplies and accumulates, ``dpu`` and ``dpu_rdma`` post-process and write out;
``quirks`` names every behaviour that public sources leave open, ``cost`` what a task costs. ``machine`` runs it
in-process, ``server`` behind QEMU's NPU device.
"""
