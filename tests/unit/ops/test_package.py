# SPDX-License-Identifier: MIT
"""The package's front door: every name it promises, and nothing imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rknpu_userspace


@pytest.mark.parametrize("name", rknpu_userspace.__all__)
def test_names(name: str) -> None:
    assert callable(getattr(rknpu_userspace, name))


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = rknpu_userspace.nonsense


@pytest.mark.parametrize("module", ["rknpu_userspace", "rknpu_userspace.selftest", "rknpu_userspace.jobloop"])
def test_start_up_does_not_import_numpy(module: str) -> None:
    """numpy takes seconds on an emulated board; listing workloads and usage errors do not need it."""
    code = f"import sys, {module}; print('numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
