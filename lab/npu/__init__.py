# SPDX-License-Identifier: MIT
"""The verbs of ``npulab npu``, one module each: ``HELP``, ``configure(parser)``, ``run(args, out) -> dict``.

What a board needs as well stands in ``rknpu_userspace`` (numpy only); the modules here show it.
"""
