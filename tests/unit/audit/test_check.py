# SPDX-License-Identifier: MIT
"""`npulab kernel check`: modules, images, configurations and headers of right and wrong kernels."""

from __future__ import annotations

import json
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from lab.cli import main
from lab.errors import ExitCode, KitError
from lab.kernel import check, elf, uapi

CROSS = "aarch64-linux-gnu-gcc"
SOURCE = """
#define INFO(n, s) static const char i##n[] __attribute__((section(".modinfo"), used)) = s
INFO(0, "name=rocket");
INFO(1, "vermagic=7.3.4-npulab SMP preempt mod_unload aarch64");
INFO(2, "alias=of:N*T*C{compatible}");
INFO(3, "depends=gpu-sched");
extern int drm_open(void);
extern int drm_sched_init(void);
const unsigned int ioctls[] = {{ 0xc0186440, 0x40186441, 0x40106442, 0x40086443 }};
int start(void) {{ return drm_open() + drm_sched_init(); }}
"""
HEADER = Path(__file__).with_name("header.h").read_text()


def compile_module(folder: Path, compiler: str = CROSS, compatible: str = "rockchip,rk3588-rknn-core") -> Path:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    source = folder / "rocket.c"
    source.write_text(SOURCE.format(compatible=compatible))
    target = folder / "rocket.ko"
    subprocess.run([compiler, "-c", "-O1", "-o", target, source], check=True)
    return target


def image(folder: Path, release: str = "7.3.4-npulab") -> Path:
    path = folder / "Image"
    header = bytearray(64)
    header[56:60] = elf.IMAGE_MAGIC
    path.write_bytes(bytes(header) + f"Linux version {release} (kit)".encode())
    return path


def test_header_gives_sizes_offsets_and_ioctl_numbers() -> None:
    found = uapi.parse(HEADER)
    assert found.sizes() == {"drm_rocket_create_bo": 24, "drm_rocket_submit": 24}
    assert found.structures["drm_rocket_submit"].fields["job_struct_size"] == (12, 4)
    # _IOWR('d', 0x40, 24) and _IOW('d', 0x41, 24)
    assert found.ioctls == {"CREATE_BO": 0xC0186440, "SUBMIT": 0x40186441}


def test_fingerprint_ignores_comments_only() -> None:
    same = uapi.parse(HEADER.replace("/* how large */", "/** @size: bytes */"))
    other = uapi.parse(HEADER.replace("__u32 handle;", "__u32 handle;\n\t__u32 flags;"))
    assert same.fingerprint == uapi.parse(HEADER).fingerprint
    assert other.fingerprint != same.fingerprint
    assert other.structures["drm_rocket_create_bo"].fields["dma_address"] == (16, 8)


def test_unknown_type_is_an_error_not_a_guess() -> None:
    with pytest.raises(ValueError, match="enum mode"):
        uapi.parse(HEADER.replace("__u32 handle;", "enum mode handle;"))


def test_module_is_read(tmp_path: Path) -> None:
    path = compile_module(tmp_path)
    packed = tmp_path / "rocket.ko.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    for candidate in (path, packed):
        found = elf.module(candidate)
        assert (found.name, found.release, found.depends) == ("rocket", "7.3.4-npulab", ("gpu-sched",))
        assert found.undefined == {"drm_open", "drm_sched_init"}
        assert {0xC0186440, 0x40186441} <= found.words


def test_module_of_another_architecture_is_one_line(tmp_path: Path) -> None:
    path = compile_module(tmp_path, "gcc")
    if "aarch64" in subprocess.run(["gcc", "-dumpmachine"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("the host is arm64")
    with pytest.raises(KitError, match="not arm64") as caught:
        elf.module(path)
    assert caught.value.code is ExitCode.USAGE


def test_truncated_module_and_text_are_one_line(tmp_path: Path) -> None:
    path = compile_module(tmp_path)
    data = path.read_bytes()
    for content in (data[: len(data) // 3], data[:30], b"no module"):
        path.write_bytes(content)
        with pytest.raises(KitError, match="no kernel module"):
            elf.module(path)


def states(results: list[check.Result]) -> dict[str, str]:
    return {result.name: result.state for result in results}


def test_whole_kernel_passes_and_each_fault_is_found(tmp_path: Path) -> None:
    module = compile_module(tmp_path)
    symbols = tmp_path / "Module.symvers"
    symbols.write_text("0x0\tdrm_open\tvmlinux\tEXPORT_SYMBOL\t\n0x0\tdrm_sched_init\tgpu-sched\tEXPORT_SYMBOL\t\n")
    files = check.Files(image=image(tmp_path), module=module, symbols=[symbols])
    found = states(check.run(files))
    assert [found[name] for name in ("image", "driver", "alias", "vermagic", "symbols")] == ["ok"] * 5
    symbols.write_text("0x0\tdrm_open\tvmlinux\tEXPORT_SYMBOL\t\n")
    broken = {result.name: result for result in check.run(files, release="7.3.5-npulab")}
    assert broken["symbols"].state == check.BAD
    assert "drm_sched_init" in broken["symbols"].found
    assert broken["vermagic"].found == "module for 7.3.4-npulab, image 7.3.5-npulab"
    other = check.Files(module=compile_module(tmp_path, compatible="rockchip,rk3576-rknn-core"))
    assert states(check.run(other))["alias"] == check.BAD


def test_configuration_reports_what_is_missing_and_what_is_only_a_module(tmp_path: Path) -> None:
    good = tmp_path / "config"
    lines = [line for line in check.REQUIRED.read_text().splitlines() if line.startswith("CONFIG_")]
    good.write_text("\n".join([*lines, "CONFIG_DRM_ACCEL_ROCKET=y"]))
    results = check.run(check.Files(config=good))
    assert states(results)["configuration"] == states(results)["driver"] == check.OK
    text = good.read_text().replace("CONFIG_ROCKCHIP_IOMMU=y", "# CONFIG_ROCKCHIP_IOMMU is not set")
    good.write_text(text.replace("CONFIG_DRM=y", "CONFIG_DRM=m").replace("ROCKET=y", "ROCKET=m"))
    by_name = {result.name: result for result in check.run(check.Files(config=good))}
    assert "CONFIG_ROCKCHIP_IOMMU=y (is n)" in by_name["configuration"].found
    assert by_name["configuration, modules"].found == "CONFIG_DRM"
    assert by_name["driver"].state == check.BAD


def test_wrong_images_are_one_line(tmp_path: Path) -> None:
    intel = bytearray(1024)
    intel[514:518] = b"HdrS"
    path = tmp_path / "vmlinuz"
    path.write_bytes(bytes(intel))
    with pytest.raises(KitError, match="an x86 kernel"):
        elf.image(path)
    path.write_bytes(b"\xfd7zXZ\0broken")
    with pytest.raises(KitError, match="damaged"):
        elf.image(path)
    whole = image(tmp_path)
    data = bytearray(whole.read_bytes())
    struct.pack_into("<Q", data, 16, 10_000_000)
    whole.write_bytes(bytes(data))
    with pytest.raises(KitError, match="cut off"):
        elf.image(whole)


def test_command_fails_on_a_fault_and_on_an_empty_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["kernel", "check", str(empty)]) == ExitCode.USAGE
    kernel = tmp_path / "kernel"
    kernel.mkdir()
    image(kernel)
    (kernel / "config").write_text("# CONFIG_DRM_ACCEL is not set\n")
    capsys.readouterr()
    assert main(["kernel", "check", "--json", str(kernel)]) == ExitCode.FAILED
    (document,) = json.loads(capsys.readouterr().out)["kernels"]
    assert {entry["name"] for entry in document["checks"] if not entry["ok"]} >= {"configuration", "driver"}


def test_interface_of_the_tree_against_the_library(tmp_path: Path) -> None:
    header = tmp_path / uapi.HEADER
    header.parent.mkdir(parents=True)
    job = "struct drm_rocket_job { __u64 tasks; __u64 in_bo_handles; __u64 out_bo_handles; __u32 task_count;"
    rest = (
        job + " __u32 task_struct_size; __u32 in_bo_handle_count; __u32 out_bo_handle_count; };\n"
        "struct drm_rocket_task { __u32 regcmd; __u32 regcmd_count; };\n"
        "struct drm_rocket_prep_bo { __u32 handle; __u32 reserved; __s64 timeout_ns; };\n"
        "struct drm_rocket_fini_bo { __u32 handle; __u32 reserved; };\n"
        "#define DRM_ROCKET_PREP_BO 0x02\n#define DRM_ROCKET_FINI_BO 0x03\n"
        "#define DRM_IOCTL_ROCKET_PREP_BO DRM_IOW(DRM_COMMAND_BASE + DRM_ROCKET_PREP_BO, struct drm_rocket_prep_bo)\n"
        "#define DRM_IOCTL_ROCKET_FINI_BO DRM_IOW(DRM_COMMAND_BASE + DRM_ROCKET_FINI_BO, struct drm_rocket_fini_bo)\n"
    )
    header.write_text(HEADER + rest)
    files = check.Files(header=header)
    (good,) = (result for result in check.run(files) if result.name == "interface")
    assert good.state == check.OK
    header.write_text(HEADER + rest.replace("__u32 regcmd_count;", "__u32 regcmd_count; __u32 flags; __u32 mask;"))
    (bad,) = (result for result in check.run(files) if result.name == "interface")
    assert (bad.state, bad.found) == (check.BAD, "drm_rocket_task has 16 bytes")
