# SPDX-License-Identifier: MIT
"""Memory as the NPU sees it: address spaces (flat arena, page tables, pass-through) and the DMA port over them.

All sizes are in bytes, all I/O virtual addresses (IOVA) are 32 bits. Translation works on whole page ranges at once;
data is moved in 16-byte atoms, by one strided view where the pages happen to be contiguous, else by one gather.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .results import FaultInfo

PAGE = 4096
ATOM = 16
IOVA_SPACE = 1 << 32
UNMAPPED = -1
"""Page without a valid translation for the access."""
NO_MEMORY = -2
"""Page that translates to something that is not RAM."""

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]
_COPY16 = np.dtype(np.complex128)  # the 16-byte type that numpy copies fastest; never used for arithmetic


class DmaFault(Exception):
    """The IOMMU has no translation for an access."""

    def __init__(self, info: FaultInfo) -> None:
        super().__init__(f"IOMMU fault: {'write' if info.write else 'read'} at {info.address:#010x}, bank {info.bank}")
        self.info = info


class BusError(Exception):
    """A translated address is not RAM."""

    def __init__(self, address: int, write: bool) -> None:
        super().__init__(f"bus error: {'write' if write else 'read'} at {address:#010x} does not reach RAM")
        self.write = write


class BankStalled(Exception):
    """The IOMMU bank is stalled: DMA waits for ever."""


class JobAborted(Exception):
    """The core was reset while the job ran."""


class AddressSpace(Protocol):
    """What a DMA port translates through."""

    ram: Bytes

    def pages(self, first: int, count: int, write: bool) -> Offsets:
        """Offset in ``ram`` of each page of a range, or UNMAPPED or NO_MEMORY."""
        ...


class Arena:
    """A flat arena: an IOVA is an offset into it. Pages are usable once they are mapped."""

    def __init__(self, size: int) -> None:
        if not 0 < size <= IOVA_SPACE:
            raise ValueError(f"arena size {size} is not in 1..{IOVA_SPACE}")
        self.size = -(-size // PAGE) * PAGE
        self.ram: Bytes = np.zeros(self.size, np.uint8)
        self._mapped = np.zeros(self.size // PAGE, np.uint8)  # 0 unmapped, 1 read-only, 2 writable

    def _range(self, iova: int, size: int) -> slice:
        if size <= 0 or iova < 0 or iova + size > self.size:
            raise ValueError(f"range {iova:#x}+{size:#x} is not inside the arena of {self.size:#x} bytes")
        return slice(iova // PAGE, -(-(iova + size) // PAGE))

    def map(self, iova: int, size: int, writable: bool = True) -> Bytes:
        """Make the pages that hold a range usable; returns the view of the range."""
        self._mapped[self._range(iova, size)] = 2 if writable else 1
        return self.view(iova, size)

    def unmap(self, iova: int, size: int) -> None:
        """Make the pages that hold a range fault. The contents stay."""
        self._mapped[self._range(iova, size)] = 0

    def view(self, iova: int, size: int) -> Bytes:
        """The bytes of a range, not a copy."""
        self._range(iova, size)
        return self.ram[iova : iova + size]

    def pages(self, first: int, count: int, write: bool) -> Offsets:
        """See AddressSpace."""
        inside = self._mapped[first : first + count]
        offsets = np.arange(first, first + count, dtype=np.int64) * PAGE
        offsets[: len(inside)][inside < (2 if write else 1)] = UNMAPPED
        offsets[len(inside) :] = UNMAPPED
        return offsets


class PhysicalMemory:
    """Guest RAM: ranges of guest physical addresses that lie in one file or array.

    ``regions`` are (guest physical address, offset in ``ram``, size), page aligned.
    """

    def __init__(self, ram: Bytes, regions: Sequence[tuple[int, int, int]]) -> None:
        for address, offset, size in regions:
            if address % PAGE or offset % PAGE or size % PAGE or size <= 0 or offset + size > len(ram):
                raise ValueError(
                    f"RAM region {address:#x}: offset {offset:#x}, size {size:#x} is not page aligned or not inside "
                    f"the {len(ram):#x} bytes of RAM"
                )
        self.ram = ram[: len(ram) // PAGE * PAGE]
        self.words = self.ram.view(np.uint32)
        self.regions = tuple(regions)

    def offsets(self, addresses: Offsets) -> Offsets:
        """Offset in RAM of page addresses, NO_MEMORY where there is none."""
        result = np.full(addresses.shape, NO_MEMORY, np.int64)
        for start, offset, size in self.regions:
            inside = (addresses >= start) & (addresses < start + size)
            result[inside] = addresses[inside] - start + offset
        return result

    def offset(self, address: int) -> int:
        """Offset in RAM of one address, or NO_MEMORY."""
        for start, offset, size in self.regions:
            if start <= address < start + size:
                return address - start + offset
        return NO_MEMORY


class PassThrough:
    """A bank that does not page: an IOVA is a guest physical address."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self.memory = memory
        self.ram = memory.ram

    def pages(self, first: int, count: int, write: bool) -> Offsets:
        """See AddressSpace."""
        return self.memory.offsets(np.arange(first, first + count, dtype=np.int64) * PAGE)


class Stalled:
    """A bank that is stalled."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self.ram = memory.ram

    def pages(self, first: int, count: int, write: bool) -> Offsets:
        """See AddressSpace."""
        raise BankStalled


def _decode_entries(entries: npt.NDArray[np.int64]) -> Offsets:
    return (entries & 0xFFFFF000) | ((entries & 0xF00) << 24) | ((entries & 0xF0) << 32)


class Paged:
    """A bank with Rockchip's version 2 page tables: 1024 directory entries, 1024 page entries each, 4 KiB pages.

    Evidence: linux drivers/iommu/rockchip-iommu.c (rk_mk_dte_v2, rk_mk_pte_v2, rk_iommu_enable: DTE_ADDR is encoded
    like a directory entry, so tables may lie above 4 GiB).
    """

    _VALID = 1
    _READ = 2
    _WRITE = 4

    def __init__(self, memory: PhysicalMemory, dte_addr: int) -> None:
        self.memory = memory
        self.ram = memory.ram
        self.directory = int(_decode_entries(np.array([dte_addr], np.int64))[0])

    def _word_index(self, address: int) -> int:
        offset = self.memory.offset(address)
        return offset if offset < 0 else offset // 4

    def pages(self, first: int, count: int, write: bool) -> Offsets:
        """See AddressSpace."""
        result = np.full(count, UNMAPPED, np.int64)
        need = self._VALID | (self._WRITE if write else self._READ)
        page, end = first, first + count
        while page < end:
            stop = min(end, (page | 1023) + 1)
            part = slice(page - first, stop - first)
            result[part] = self._table(page >> 10, page & 1023, stop - page, need)
            page = stop
        return result

    def _table(self, directory_index: int, page_index: int, count: int, need: int) -> Offsets:
        words = self.memory.words
        at = self._word_index(self.directory + 4 * directory_index)
        if at < 0:
            return np.full(count, NO_MEMORY, np.int64)
        entry = int(words[at])
        if not entry & self._VALID:
            return np.full(count, UNMAPPED, np.int64)
        table = self._word_index(int(_decode_entries(np.array([entry], np.int64))[0]))
        if table < 0:
            return np.full(count, NO_MEMORY, np.int64)
        entries = words[table + page_index : table + page_index + count].astype(np.int64)
        offsets = self.memory.offsets(_decode_entries(entries))
        offsets[(entries & need) != need] = UNMAPPED
        return offsets


class WriteGuard:
    """Lets a reset cut off a running job: once aborted, no byte is written any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._aborted = False

    def abort(self) -> None:
        """Returns when no write is under way; none will follow."""
        with self._lock:
            self._aborted = True

    def check(self) -> None:
        """Raise JobAborted after an abort."""
        if self._aborted:
            raise JobAborted

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._aborted:
            self._lock.release()
            raise JobAborted

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class DmaPort:
    """Reads and writes through one IOMMU bank.

    A returned array may be a view of RAM: read it before anything else runs, never write to it. ``base`` is added to
    every address (PC_TASK_DMA_BASE_ADDR).
    """

    def __init__(self, space: AddressSpace, bank: int, guard: WriteGuard) -> None:
        self._space = space
        self._ram = space.ram
        self._bank = bank
        self._guard = guard
        self.base = 0

    def _fault(self, address: int, offset: int, write: bool) -> Exception:
        if offset == NO_MEMORY:
            return BusError(address, write)
        return DmaFault(FaultInfo(address, write, self._bank))

    def _contiguous(self, pages: Offsets) -> bool:
        count = len(pages)
        if pages[0] < 0 or pages[-1] - pages[0] != (count - 1) * PAGE:
            return False
        return count <= 2 or bool((pages[1:] - pages[:-1] == PAGE).all())

    def read(self, iova: int, size: int) -> Bytes:
        """``size`` bytes from ``iova``, which may wrap at 4 GiB."""
        return self._read((iova + self.base) % IOVA_SPACE, size)

    def _read(self, iova: int, size: int) -> Bytes:
        self._guard.check()
        if iova + size > IOVA_SPACE:
            first = IOVA_SPACE - iova
            return np.concatenate([self._read(iova, first), self._read(0, size - first)])
        start = iova // PAGE
        pages = self._space.pages(start, (iova + size - 1) // PAGE - start + 1, False)
        skip = iova % PAGE
        if self._contiguous(pages):
            offset = int(pages[0]) + skip
            return self._ram[offset : offset + size]
        if (pages < 0).any():
            bad = int((pages < 0).argmax())
            raise self._fault(max(iova, (start + bad) * PAGE), int(pages[bad]), False)
        whole = self._ram.reshape(-1, PAGE)[pages // PAGE].reshape(-1)
        return whole[skip : skip + size]

    def gather(
        self, base: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: npt.DTypeLike
    ) -> npt.NDArray[Any]:
        """Atoms at ``base + sum(index * stride)``; the result has shape ``shape + (16 // itemsize,)``.

        Base and strides are multiples of 16; strides may be negative, zero or wrap.
        """
        kind = np.dtype(dtype)
        full = (*shape, ATOM // kind.itemsize)
        if _is_dense(shape, strides):
            return self.read(base, int(np.prod(shape)) * ATOM).view(kind).reshape(full)
        self._guard.check()
        base = (base + self.base) % IOVA_SPACE
        first, pages = self._span(base, shape, strides, False)
        if first >= 0 and self._contiguous(pages):
            offset = int(pages[0]) + base - first * PAGE
            return np.ndarray(full, kind, self._ram.data, offset, (*strides, kind.itemsize))
        index = self._atom_index(base, shape, strides, max(first, 0), pages, False)
        return self._ram.view(_COPY16)[index].view(kind).reshape(full)

    def scatter(self, base: int, shape: tuple[int, ...], strides: tuple[int, ...], data: npt.NDArray[Any]) -> None:
        """Write atoms: ``data`` is complex128 (16 opaque bytes) of shape ``shape``. All or nothing on a fault."""
        base = (base + self.base) % IOVA_SPACE
        first, pages = self._span(base, shape, strides, True)
        if first >= 0 and self._contiguous(pages):
            offset = int(pages[0]) + base - first * PAGE
            target = np.ndarray(shape, _COPY16, self._ram.data, offset, strides)
            with self._guard:
                target[...] = data
            return
        index = self._atom_index(base, shape, strides, max(first, 0), pages, True)
        with self._guard:
            self._ram.view(_COPY16)[index] = data

    def _span(self, base: int, shape: tuple[int, ...], strides: tuple[int, ...], write: bool) -> tuple[int, Offsets]:
        """First page and translations of the pages between the lowest and highest atom; (-1, all) if it wraps."""
        low = base + sum(min(0, (n - 1) * s) for n, s in zip(shape, strides, strict=True))
        high = base + sum(max(0, (n - 1) * s) for n, s in zip(shape, strides, strict=True)) + ATOM
        if low < 0 or high > IOVA_SPACE:
            return -1, self._space.pages(0, IOVA_SPACE // PAGE, write)
        first = low // PAGE
        return first, self._space.pages(first, (high - 1) // PAGE - first + 1, write)

    def _atom_index(
        self, base: int, shape: tuple[int, ...], strides: tuple[int, ...], first: int, pages: Offsets, write: bool
    ) -> Offsets:
        """Index of every atom in RAM taken as an array of atoms."""
        address = np.full((1,) * len(shape), base, np.int64)
        for axis, (n, stride) in enumerate(zip(shape, strides, strict=True)):
            line = np.arange(n, dtype=np.int64) * stride
            address = address + line.reshape([n if i == axis else 1 for i in range(len(shape))])
        address %= IOVA_SPACE
        offset = pages[address // PAGE - first]
        bad = offset < 0
        if bad.any():
            at = int(bad.reshape(-1).argmax())
            raise self._fault(int(address.reshape(-1)[at]), int(offset.reshape(-1)[at]), write)
        index: Offsets = (offset + address % PAGE) // ATOM
        return index


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = ATOM
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != expected:
            return False
        expected *= n
    return True


def as_atoms(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View an array whose last axis holds a multiple of 16 bytes as opaque atoms, for ``DmaPort.scatter``."""
    return np.ascontiguousarray(data).view(_COPY16)
