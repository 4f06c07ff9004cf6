# SPDX-License-Identifier: MIT
"""What the kernel said before the first test."""

from __future__ import annotations


def test_boot_is_without_a_bad_word(boot_messages: list[str]) -> None:
    assert not boot_messages, "\n".join(boot_messages)
