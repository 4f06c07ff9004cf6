# SPDX-License-Identifier: MIT
"""Compressed images: the same bytes in every format, holes kept, damage noticed, nothing left behind."""

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.errors import ExitCode, KitError
from lab.firmware.flash import bmap, unpack
from lab.firmware.sweep import Quiet

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "zst": lambda data: zstandard.ZstdCompressor().compress(data),
    "xz": lzma.compress,
    "gz": gzip.compress,
    "bz2": bz2.compress,
}
CONTENT = os.urandom(70_001) + bytes(9 << 20) + os.urandom(513) + bytes(3 << 20)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setenv("NPULAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def packed(folder: Path, suffix: str, content: bytes = CONTENT) -> Path:
    path = folder / f"disk.wic.{suffix}"
    path.write_bytes(PACKERS[suffix](content))
    return path


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks"]


@pytest.mark.parametrize("suffix", PACKERS)
def test_every_format_once_and_sparse(tmp_path: Path, suffix: str) -> None:
    image = packed(tmp_path, suffix)
    made = unpack.raw(image, Quiet())
    assert made.name == "disk.wic" and made.read_bytes() == CONTENT
    assert made.stat().st_blocks * 512 < 4 << 20
    assert unpack.raw(image.rename(tmp_path / "other-name"), Quiet()) == made


@given(
    st.lists(st.one_of(st.binary(max_size=300), st.integers(0, 3 << 20).map(bytes)), max_size=5),
    st.sampled_from(sorted(PACKERS)),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_content(tmp_path: Path, parts: list[bytes], suffix: str) -> None:
    """Frames and members one after the other are one content, as pzstd and pigz write them."""
    image = tmp_path / f"any.{suffix}"
    image.write_bytes(b"".join(PACKERS[suffix](part) for part in parts) or PACKERS[suffix](b""))
    assert unpack.raw(image, Quiet()).read_bytes() == b"".join(parts)


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("how", ["cut", "bit", "tail"])
def test_damage_is_noticed_and_leaves_nothing(tmp_path: Path, cache: Path, suffix: str, how: str) -> None:
    image = packed(tmp_path, suffix)
    data = bytearray(image.read_bytes())
    if how == "cut":
        del data[len(data) // 2 :]
    elif how == "bit":
        data[len(data) // 2] ^= 0x10
    else:
        del data[-3:]
    image.write_bytes(data)
    if (suffix, how) == ("zst", "bit"):  # zstd without a checksum says nothing of it: make one with
        data = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(CONTENT))
        data[len(data) // 2] ^= 0x10
        image.write_bytes(data)
    with pytest.raises(KitError, match="damaged or incomplete") as caught:
        unpack.raw(image, Quiet())
    assert caught.value.code == ExitCode.MISMATCH
    assert not leftovers(cache)


def test_full_disk(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "_pieces", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(KitError) as caught:
        unpack.raw(packed(tmp_path, "xz"), Quiet())
    assert caught.value.code == ExitCode.INFRASTRUCTURE
    assert not leftovers(cache)


@pytest.mark.parametrize("magic", unpack.REFUSED)
def test_what_is_no_raw_image_is_refused(tmp_path: Path, magic: bytes) -> None:
    image = tmp_path / "image"
    image.write_bytes(magic + bytes(100))
    with pytest.raises(KitError, match="not a raw image") as caught:
        unpack.raw(image, Quiet())
    assert caught.value.code == ExitCode.USAGE and caught.value.hint


def test_a_raw_image_is_taken_as_it_is(tmp_path: Path, cache: Path) -> None:
    image = tmp_path / "disk.img.xz"  # the name says nothing
    image.write_bytes(os.urandom(4096).replace(b"\xfd", b"\0"))
    assert unpack.raw(image, Quiet()) == image
    assert not cache.exists()


@pytest.mark.parametrize(
    ("files", "compressed", "expect"),
    [
        (["disk.wic.zst.bmap", "disk.wic.bmap"], True, "disk.wic.zst.bmap"),
        (["disk.wic.bmap"], True, "disk.wic.bmap"),
        (["disk.wic.bmap"], False, None),
        ([], True, None),
    ],
)
def test_block_map_beside(tmp_path: Path, files: list[str], compressed: bool, expect: str | None) -> None:
    for name in files:
        (tmp_path / name).touch()
    found = bmap.find(tmp_path / "disk.wic.zst", compressed=compressed)
    assert (found and found.name) == expect
