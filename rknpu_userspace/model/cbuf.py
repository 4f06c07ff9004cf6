# SPDX-License-Identifier: MIT
"""The convolution buffer: 12 banks of 32 KiB, data from bank 0 upwards, weights in the banks after it.

The model keeps what the last task left there, decoded, so that DATA_REUSE and WEIGHT_REUSE read the *old* content
whatever the addresses say. It also recognises a fetch of the very bytes that are already there and keeps the decoded
form: a shortcut of the model without effect on values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .precision import Array

BANKS = 12
BANK_BYTES = 32 * 1024
ENTRY_BYTES = 64


@dataclass
class Content:
    """One operand in the buffer: where, in which geometry, its raw bytes and its decoded form."""

    first_bank: int
    banks: int
    geometry: tuple[object, ...]
    raw: Array
    decoded: Array
    complete: bool


class Cbuf:
    """Contents of the buffer of one core; a reset loses them."""

    def __init__(self) -> None:
        self.data: Content | None = None
        self.weights: Content | None = None

    def reusable(self, content: Content | None, first_bank: int, banks: int, geometry: tuple[object, ...]) -> str:
        """Why the content can not be reused by such a task; empty if it can."""
        if content is None:
            return "the CBUF holds nothing to reuse"
        if not content.complete:
            return "the operand was larger than its banks and has been streamed through them"
        if content.first_bank != first_bank or banks < content.banks:
            return "the bank split differs from the one under which the operand was fetched"
        if content.geometry != geometry:
            return f"the operand was fetched as {content.geometry}, not {geometry}"
        return ""

    def same(self, content: Content | None, geometry: tuple[object, ...], raw: Array) -> bool:
        """Whether the content decodes from exactly these bits."""
        if content is None or content.geometry != geometry:
            return False
        bits = f"u{raw.dtype.itemsize}"  # not as floats: slower, and a NaN is not equal to itself
        return np.array_equal(content.raw.view(bits), raw.view(bits))

    def store_data(self, content: Content) -> None:
        """Data was fetched: weights in the same banks are gone."""
        self.data = content
        if self.weights is not None and self.weights.first_bank < content.first_bank + content.banks:
            self.weights = None

    def store_weights(self, content: Content) -> None:
        """Weights were fetched: data in the same banks is gone."""
        self.weights = content
        if self.data is not None and self.data.first_bank + self.data.banks > content.first_bank:
            self.data = None
