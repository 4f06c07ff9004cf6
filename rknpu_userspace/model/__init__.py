# SPDX-License-Identifier: MIT
"""An executable specification of the NPU core of the RK3588: one module per hardware block.

``pc`` fetches and decodes command words, ``registers`` holds the two register groups of each block, ``cna`` fetches
features and weights, ``core`` multiplies and accumulates, ``dpu`` and ``dpu_rdma`` post-process and write out;
``quirks`` names every behaviour that public sources leave open, ``cost`` what a task costs. ``machine`` runs it
in-process, ``server`` behind QEMU's NPU device.

Sources are cited by short names: TRM = RK3588 technical reference manual part 1, chapter 36; Mesa =
src/gallium/drivers/rocket; RN = gregordinary/rockchip-npu-notes and RU = gregordinary/rocket-userspace (measurements on
boards, RN as of commit 224b139); HM = happyme531/rknpu2_matmul_open; WQ = widgetii/orangepi5plus-npu; AB =
allbilly/rk3588; NVDLA = the open accelerator whose structure this NPU shares. They were read for facts; none of their
code is here.
"""
