# SPDX-License-Identifier: MIT
"""Experiments that settle what public sources leave open about the NPU, on a board with an unmodified driver.

    python3 -m rknpu_userspace probe --device /dev/accel/accel0 --out board.json
    rknpu_userspace.open("model", quirks="board.json")

On the model they read back the answers that it was given. ``rig`` has what experiments are made of, ``tasks`` small
tasks; each of the other modules holds a group of experiments, ``runner`` runs them.
"""
