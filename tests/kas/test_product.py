# SPDX-License-Identifier: MIT
"""``npulab build --with kas``: real kas on stand-ins of the layers, and of bitbake where it has to say something.

What BitBake prints is written down as its source has it (lib/bb, and OE-core's classes).
"""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import stubs
from conftest import MACHINES, REPOSITORY
from stubs import Kas

from lab import boards
from lab.assemble import artifacts, kernel, mirror
from lab.assemble.apt import Apt
from lab.assemble.virt import BuildOptions, around, assemble
from lab.cache import Cache
from lab.errors import ExitCode, KitError
from lab.kas import collect, drive, faults, host, request, source
from lab.kas.drive import Places
from lab.kas.progress import Progress
from lab.kas.request import Request
from lab.output import Output

OUT = Output(quiet=True)
KERNEL = ("linux-rocket-7.3.4-r0", "/layer/linux-rocket_7.3.bb")


@dataclass(frozen=True)
class Product:
    """A build with stand-ins."""

    kas: Kas

    @property
    def places(self) -> Places:
        return Places(self.kas.top / "work", self.kas.top / "build", self.kas.top / "log")

    def request(self, board: str = "orangepi-5", **words: object) -> Request:
        return Request(board, project=self.kas.top / "project", **words)  # type: ignore[arg-type]

    def bitbake(self, script: str) -> None:
        """What bitbake does from now on."""
        path = self.kas.top / "build/stand-in"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)

    def build(self, **words: object) -> drive.Outcome:
        request = self.request(**words)
        return drive.build(drive.preflight(request, self.places), request, self.places, OUT, {})

    def fails(self, **words: object) -> KitError:
        with pytest.raises(KitError) as caught:
            self.build(**words)
        assert caught.value.hint
        return caught.value

    def map(self, stub: int, target: str) -> None:
        """Point a repository's address elsewhere."""
        path = self.kas.top / "gitconfig"
        path.write_text(path.read_text().replace(f'"{self.kas.top}/stub{stub}"', f'"{target}"'))


@pytest.fixture
def product(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> Product:
    kas = stubs.make(tmp_path, programs)
    monkeypatch.setenv("GITCONFIG_FILE", str(tmp_path / "gitconfig"))
    for name in ("KAS_WORK_DIR", "KAS_BUILD_DIR", "KAS_REPO_REF_DIR"):
        monkeypatch.delenv(name, raising=False)
    # these have tests of their own; the stand-in of bitbake needs nothing
    for check in ("check_user", "check_locale", "check_tools"):
        monkeypatch.setattr(host, check, lambda *_: None)
    for name in host.SPACE:
        monkeypatch.setitem(host.SPACE, name, 0)
    return Product(kas)


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_request_joins_the_files(product: Product) -> None:
    wanted = product.request(kernel="6.18", image="kernel", options=("host-toolchain", "offline"))
    assert wanted.config == (
        "kas/orangepi-5.yml:kas/opt/kernel-6.18.yml:kas/opt/kernel-only.yml:kas/opt/host-toolchain.yml:"
        "kas/opt/offline.yml"
    )
    assert wanted.target == "virtual/kernel"
    assert product.request(image="rescue").target == "npu-rescue-initramfs"
    assert product.request().target == "npu-bringup-image"


def test_every_board_has_a_machine() -> None:
    assert {Request(name).machine for name in boards.names()} <= set(MACHINES)
    assert Request("rock-5-itx-plus").trees == ["rk3588-rock-5-itx-plus"]
    assert len(Request("virt").trees) == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"options": ("ofline",)}, "offline"),
        ({"kernel": "mainline"}, "7.3, 6.18"),
        ({"options": ("host-toolchain",)}, "--image kernel"),
        ({"options": ("icecc",)}, "--option host-toolchain"),
        ({"board": "virt", "options": ("loader",)}, "--option loader"),
    ],
)
def test_unknown_and_contradicting_words_are_usage_errors(words: dict[str, object], told: str) -> None:
    with pytest.raises(KitError) as caught:
        Request(**{"board": "orangepi-5", **words})  # type: ignore[arg-type]
    assert caught.value.code is ExitCode.USAGE
    assert told in caught.value.hint


def test_every_option_file_is_offered() -> None:
    files = {path.stem for path in (REPOSITORY / "kas/opt").glob("*.yml")}
    assert files - set(request.options()) == {"kernel-7.3", "kernel-6.18", "kernel-only", "rescue"}


# --- before the start ------------------------------------------------------------------------------------------------


def refused(check: object, *arguments: object) -> KitError:
    with pytest.raises(KitError) as caught:
        check(*arguments)  # type: ignore[operator]
    assert caught.value.hint
    return caught.value


def test_root_is_refused() -> None:
    error = refused(host.check_user, 0)
    assert (error.code, error.message) == (ExitCode.REFUSED, "BitBake refuses to run as root")
    host.check_user(1000)


def test_missing_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "locale"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program.write_text("#!/bin/sh\nprintf 'C\\nC.utf8\\nPOSIX\\n'\n")
    program.chmod(0o755)
    assert "en_US.UTF-8" in refused(host.check_locale).message
    program.write_text("#!/bin/sh\nprintf 'C\\nen_US.utf8\\n'\n")
    host.check_locale()


def test_missing_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {**host.TOOLS, **host.HOST_TOOLCHAIN}:
        if name not in ("chrpath", "depmod"):
            (tmp_path / name).write_text("")
            (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refused(host.check_tools, Request("orangepi-5"))
    assert (error.code, error.hint) == (ExitCode.INFRASTRUCTURE, "apt-get install chrpath")
    error = refused(host.check_tools, Request("orangepi-5", image="kernel", options=("host-toolchain",)))
    assert error.hint == "apt-get install chrpath kmod"


def test_kas_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused(host.find_kas).message == "kas is not installed"


def test_blob_is_named_there_and_the_right_one(tmp_path: Path) -> None:
    blob = tmp_path / "ddr.bin"
    blob.write_bytes(b"blob")
    digest = hashlib.sha256(b"blob").hexdigest()
    good = {"NPULAB_DDR_BLOB": str(blob), "NPULAB_DDR_SHA256": digest}
    host.check_blob(good)
    cases = [
        ({}, ExitCode.REFUSED, "NPULAB_DDR_BLOB is not set"),
        ({"NPULAB_DDR_BLOB": str(blob)}, ExitCode.REFUSED, "NPULAB_DDR_SHA256 is not set"),
        ({**good, "NPULAB_DDR_BLOB": "/none"}, ExitCode.USAGE, "no file /none"),
        ({**good, "NPULAB_DDR_SHA256": "1234"}, ExitCode.USAGE, "no SHA-256"),
        ({**good, "NPULAB_DDR_SHA256": "0" * 64}, ExitCode.MISMATCH, digest),
    ]
    for environment, code, told in cases:
        error = refused(host.check_blob, environment)
        assert error.code is code
        assert told in error.message


def test_small_disk_is_told_before_anything_starts(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(host.SPACE, "bringup", 10**18)
    error = product.fails()
    assert error.code is ExitCode.INFRASTRUCTURE
    assert "1000000000.0 GB" in error.message
    assert not (product.kas.top / "build/conf").exists()


# --- kas and git -----------------------------------------------------------------------------------------------------


def test_build_succeeds_and_tells_what_ran(product: Product) -> None:
    recipe, path = KERNEL
    product.bitbake(
        f"""cat <<'END'
Loading cache...done.
Parsing recipes...done.
Parsing of 1034 .bb files complete (1000 cached, 34 parsed). 1900 targets, 100 skipped, 0 masked, 0 errors.
NOTE: Executing Tasks
NOTE: Running setscene task 1 of 1 ({path}:do_populate_lic_setscene)
NOTE: recipe {recipe}: task do_populate_lic_setscene: Started
NOTE: recipe {recipe}: task do_populate_lic_setscene: Succeeded
NOTE: Running task 36 of 37 ({path}:do_compile)
NOTE: recipe {recipe}: task do_compile: Started
WARNING: {recipe} do_compile: something to read
NOTE: recipe {recipe}: task do_compile: Succeeded
NOTE: Tasks Summary: Attempted 37 tasks of which 36 didn't need to be rerun and all succeeded.
END
"""
    )
    outcome = product.build(image="kernel")
    progress = outcome.progress
    assert progress.rebuilt() == {recipe: ["do_compile"]}
    assert (progress.attempted, progress.kept, progress.recipes) == (37, 36, 1034)
    assert progress.warnings == [f"{recipe} do_compile: something to read"]
    assert not progress.active
    assert "do_compile" in product.places.log.read_text()
    assert (product.kas.top / "build/asked").read_text().strip() == "-c build virtual/kernel"


def test_no_network(product: Product) -> None:
    product.map(1, "https://127.0.0.1:9/openembedded-core")
    error = product.fails()
    assert error.code is ExitCode.INFRASTRUCTURE
    assert error.message.startswith("no network: 127.0.0.1")
    assert "KAS_REPO_REF_DIR" in error.hint


def test_repository_that_is_not_there(product: Product) -> None:
    product.map(2, str(product.kas.top / "gone"))
    error = product.fails()
    assert error.code is ExitCode.INFRASTRUCTURE
    assert f"{product.kas.top}/gone" in error.message


def test_commit_that_is_not_there(product: Product) -> None:
    lock = product.kas.top / "project/kas/orangepi-5.lock.yml"
    lock.write_text(f'header:\n  version: 14\noverrides:\n  repos:\n    meta-arm:\n      commit: "{"0" * 40}"\n')
    error = product.fails()
    assert error.code is ExitCode.MISMATCH
    assert "0" * 40 in error.message
    assert "kas lock --update" in error.hint


# --- BitBake's errors ------------------------------------------------------------------------------------------------

BITBAKE_SAYS = {
    "fragment": (
        "ERROR: linux-rocket-7.3.4-r0 do_npulab_check_config: lines of the fragments that did not survive into "
        ".config: CONFIG_ROCKCHIP_PM_DOMAINS=y. Look at what these symbols depend on in Linux 7.3.4 and add it to the "
        "fragment.",
        ExitCode.FAILED,
        "did not survive: CONFIG_ROCKCHIP_PM_DOMAINS=y",
    ),
    "patch": (
        "ERROR: linux-rocket-7.3.4-r0 do_patch: Applying patch '0005-x.patch' on target directory '/w/linux'\n"
        "CmdError('patch --no-backup-if-mismatch', 0, 'stdout: patching file drivers/accel/rocket/rocket_job.c\n"
        "Hunk #1 FAILED at 12.')",
        ExitCode.FAILED,
        "the patch 0005-x.patch does not apply",
    ),
    "machine": (
        "ERROR:  OE-core's config sanity checker detected a potential misconfiguration.\n"
        "    MACHINE=rock-6 is invalid. Please set a valid MACHINE in your local.conf, environment or other "
        "configuration file.",
        ExitCode.USAGE,
        "no machine rock-6",
    ),
    "root": (
        "ERROR:  OE-core's config sanity checker detected a potential misconfiguration.\n"
        "    Do not use Bitbake as root.",
        ExitCode.REFUSED,
        "as root",
    ),
    "locale": ("Please make sure locale 'en_US.UTF-8' is available on your system", ExitCode.INFRASTRUCTURE, "en_US"),
    "tools": (
        "ERROR: The following required tools (as specified by HOSTTOOLS) appear to be unavailable in PATH, please "
        "install them in order to proceed:\n  chrpath diffstat",
        ExitCode.INFRASTRUCTURE,
        "chrpath diffstat",
    ),
    "blob": (
        "ERROR: npulab-ddr-blob-1.0-r0 do_compile: NPULAB_DDR_BLOB: there is no file /x/ddr.bin",
        ExitCode.REFUSED,
        "there is no file /x/ddr.bin",
    ),
    "wrong blob": (
        f"ERROR: npulab-ddr-blob-1.0-r0 do_compile: /x/ddr.bin has the SHA-256 {'a' * 64}, NPULAB_DDR_SHA256 says "
        f"{'b' * 64}: not used",
        ExitCode.MISMATCH,
        "a" * 64,
    ),
    "no network": (
        "ERROR: linux-rocket-7.3.4-r0 do_fetch: Fetcher failure for URL: "
        "'https://cdn.kernel.org/pub/linux/kernel/v7.x/linux-7.3.4.tar.xz;name=kernel'. Unable to fetch URL from any "
        "source.",
        ExitCode.INFRASTRUCTURE,
        "cdn.kernel.org",
    ),
    "network is off": (
        "ERROR: linux-rocket-7.3.4-r0 do_fetch: Network access disabled through BB_NO_NETWORK (or set indirectly due "
        "to use of BB_FETCH_PREMIRRORONLY) but access requested with command wget (for url "
        "https://cdn.kernel.org/pub/linux/kernel/v7.x/linux-7.3.4.tar.xz)",
        ExitCode.INFRASTRUCTURE,
        "linux-7.3.4.tar.xz",
    ),
    "hash": (
        "ERROR: linux-rocket-6.18.39-r0 do_fetch: Checksum mismatch!\nFile: '/dl/linux-6.18.39.tar.xz' has sha256 "
        "checksum 'x' when 'y' was expected",
        ExitCode.MISMATCH,
        "/dl/linux-6.18.39.tar.xz",
    ),
    "disk": (
        "ERROR: linux-rocket-7.3.4-r0 do_compile: oe_runmake failed\n| ld: final link failed: No space left on device",
        ExitCode.INFRASTRUCTURE,
        "the disk is full",
    ),
    "disk monitor": (
        'ERROR: No new tasks can be executed since the disk space monitor action is "STOPTASKS"!',
        ExitCode.INFRASTRUCTURE,
        "the disk is full",
    ),
    "provider": (
        "ERROR: Nothing PROVIDES 'virtual/bootloader'",
        ExitCode.FAILED,
        "Nothing PROVIDES 'virtual/bootloader'",
    ),
    "anything else": (
        "ERROR: linux-rocket-7.3.4-r0 do_compile: oe_runmake failed\n"
        "ERROR: Logfile of failure stored in: /w/temp/log.do_compile.12\n"
        "Log data follows:\n| drivers/x.c:1: error: expected ';'\nERROR: Task (x.bb:do_compile) failed with exit code "
        "'1'",
        ExitCode.FAILED,
        "linux-rocket-7.3.4-r0 do_compile: oe_runmake failed",
    ),
}


@pytest.mark.parametrize("name", list(BITBAKE_SAYS))
def test_bitbake_error_is_one_clear_line(name: str) -> None:
    said, code, told = BITBAKE_SAYS[name]
    progress = Progress()
    for line in said.splitlines():
        progress.feed(f"2026-11-21 10:12:23 - INFO     - {line}")
    error = faults.explain(progress, Request("orangepi-5"), Path("/log"), 1)
    assert error.code is code, error.message
    assert told in error.message
    assert "\n" not in error.message
    assert error.hint


def test_error_lines_on_stderr_and_repeated_by_kas_count_once() -> None:
    progress = Progress()
    head = "ERROR: linux-rocket-7.3.4-r0 do_package_write_deb: Fatal errors occurred in subprocesses:"
    for line in (head, "[Errno 28] No room", "", "NOTE: recipe x: task do_y: Failed"):
        progress.feed(f"2026-11-21 12:00:42 - {'INFO ' if 'NOTE' in line else 'ERROR'}    - {line}")
    progress.feed('2026-11-21 12:00:50 - ERROR    - Command "bitbake" failed:')
    for line in (head, "[Errno 28] No room"):
        progress.feed(line)
    assert progress.errors == [head.removeprefix("ERROR: "), "[Errno 28] No room", ""]
    assert progress.kas_errors == ['Command "bitbake" failed:']


def test_failed_build_shows_the_decisive_lines_and_the_log(product: Product) -> None:
    said, _, told = BITBAKE_SAYS["anything else"]
    product.bitbake(f"cat <<'END'\n{said}\nEND\nexit 1\n")
    error = product.fails()
    assert told in error.message
    assert error.hint == "the task's log: /w/temp/log.do_compile.12"
    assert "drivers/x.c:1: error" in error.tail
    assert error.log == product.places.log


# --- interrupts ------------------------------------------------------------------------------------------------------

SERVER = """
import os, pathlib, signal, sys, time
lock = pathlib.Path(sys.argv[1])
lock.write_text(str(os.getpid()))
def stop(*_):
    lock.unlink()
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv else stop)
time.sleep(600)
"""


@pytest.mark.parametrize("mood", ["", "stubborn"])
def test_interrupt_ends_kas_bitbake_and_its_server(
    product: Product, mood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = product.kas.top / "bitbake-server"
    server.write_text(SERVER)
    lock = product.kas.top / "build/bitbake.lock"
    product.bitbake(f"setsid {sys.executable} {server} {lock} {mood} >/dev/null 2>&1 &\nsleep 600\n")
    script = (
        "import sys; from pathlib import Path; from lab.kas import session; session.TOLD = 3.0\n"
        "session.run(sys.argv[2:], cwd=Path(sys.argv[1]), log=Path('log'), environment=__import__('os').environ, "
        "on_line=lambda line: None)"
    )
    project, config = product.kas.top / "project", "kas/orangepi-5.yml"
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(project), str(product.kas.program), "build", config],
        cwd=product.kas.top,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "KAS_WORK_DIR": str(product.places.work),
            "KAS_BUILD_DIR": str(product.places.build),
        },
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not lock.is_file() or not lock.read_text():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    number = int(lock.read_text())
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    assert not Path(f"/proc/{number}").exists()
    assert lock.exists() == (mood == "stubborn")
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(product.kas.top) not in commands


# --- sources and results ---------------------------------------------------------------------------------------------


def test_source_is_the_recipes_own_unless_said_otherwise(tmp_path: Path) -> None:
    wanted = Request("orangepi-5", kernel="6.18")
    variables, origin = source.find(wanted, None, Cache(tmp_path), None, OUT, {})
    assert variables == {}
    assert origin["name"].startswith("https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.18.")
    assert origin["kind"] == "tarball"


def test_source_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "linux.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        archive.addfile(tarfile.TarInfo("./my-linux/Makefile"), io.BytesIO(b""))
    wanted = Request("orangepi-5")
    variables, origin = source.find(wanted, str(path), Cache(tmp_path), None, OUT, {})
    assert variables[source.URI] == f"file://{path}"
    assert variables[source.FOLDER] == "my-linux"
    assert variables[source.SHA256] == origin["sha256"]
    with pytest.raises(KitError) as caught:
        source.find(wanted, str(tmp_path), Cache(tmp_path), None, OUT, {})
    assert caught.value.code is ExitCode.USAGE


class Trimmed(kernel.KernelOptions):
    """The virtual board's kernel in the words of a board's."""

    fixes = False


@pytest.fixture
def deployed(product: Product, monkeypatch: pytest.MonkeyPatch) -> Request:
    """A deploy directory with the kernel of the other path in it, and the request that it fits."""
    options = Trimmed(rocket_module=False, jobs=1)
    monkeypatch.setattr(Request, "kernel_options", options)
    wanted = product.request("virt", image="kernel", options=("rocket-builtin",))
    minutes = assemble(BuildOptions(), OUT)
    folder = product.places.deploy(wanted.machine)
    folder.mkdir(parents=True)
    (folder / "Image").write_bytes(minutes.kernel.read_bytes())
    for name in wanted.trees:
        (folder / f"{name}.dtb").write_bytes(minutes.dtb(name).read_bytes())
    with tarfile.open(folder / f"modules-{wanted.machine}.tgz", "w:gz") as archive:
        archive.add(minutes.file("modules.builtin.modinfo"), "lib/modules/7.3.4/modules.builtin.modinfo")
    return wanted


def entry(product: Product, wanted: Request) -> Path:
    cache = Cache()
    found = collect.look(wanted, product.places)
    apt = Apt(cache, mirror.find(None), product.places.log)
    return collect.kernel_entry(found, wanted, {"kind": "tarball"}, apt, cache, OUT, product.places.log)


def test_deploy_directory_becomes_an_artifact_set(product: Product, deployed: Request) -> None:
    minutes = assemble(BuildOptions(), OUT)
    found = around({"kernel": entry(product, deployed)}, BuildOptions(), OUT)
    ours, theirs = found.manifest, minutes.manifest
    assert artifacts.load(found.root).manifest == ours
    assert ours["kernel"]["flavour"] == "kas"
    assert ours["files"]["config"] == theirs["files"]["config"], "the image's own configuration"
    for part in ("release", "rocket_aliases", "fragments", "patches", "rocket"):
        assert ours["kernel"][part] == theirs["kernel"][part]
    for part in ("rootfs", "kit", "qemu"):
        assert ours[part] == theirs[part]
    assert sorted(ours["dtbs"]) == sorted(deployed.trees)


def test_results_of_another_build_are_refused(product: Product, deployed: Request) -> None:
    other = Request("virt", "6.18", "kernel", deployed.options, deployed.project)
    with pytest.raises(KitError) as caught:
        entry(product, other)
    assert "asked for was 6.18" in caught.value.message


def test_kernel_without_a_fragments_line_is_refused(
    product: Product, deployed: Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fragment = tmp_path / "more.cfg"
    fragment.write_text("CONFIG_NO_SUCH_SYMBOL=y\n")
    monkeypatch.setattr(kernel, "fragment_files", lambda *_: [fragment])
    # another key, or the entry of the test above would be found
    monkeypatch.setattr(collect.Deployed, "key", lambda *_: "0" * 20)
    with pytest.raises(KitError) as caught:
        entry(product, deployed)
    assert "CONFIG_NO_SUCH_SYMBOL=y" in caught.value.message


@pytest.mark.parametrize("name", ["Image", "rk3588-rock-5-itx.dtb"])
def test_missing_result_is_told(product: Product, deployed: Request, name: str) -> None:
    (product.places.deploy(deployed.machine) / name).unlink()
    with pytest.raises(KitError) as caught:
        collect.look(deployed, product.places)
    assert name.removesuffix(".dtb") in caught.value.message


def test_image_is_collected(product: Product, tmp_path: Path) -> None:
    wanted = product.request("virt")
    folder = product.places.deploy(wanted.machine)
    folder.mkdir(parents=True)
    for name in ("Image", *(f"{tree}.dtb" for tree in wanted.trees)):
        (folder / name).write_bytes(b"")
    base = f"npu-bringup-image-{wanted.machine}.rootfs"
    (folder / f"{base}.ext4").write_bytes(b"ext4")
    (folder / f"{base}.manifest").write_text("python3-core cortexa55 3.14.6\nlibteflon cortexa55 26.0.5\n")
    found = collect.look(wanted, product.places)
    assert sorted(found.extra) == ["npu-bringup-image.ext4", "npu-bringup-image.manifest"]
    rootfs = collect.image_rootfs(found, wanted, Cache(tmp_path / "cache"))
    assert rootfs is not None
    assert (rootfs / "rootfs.ext4").read_bytes() == b"ext4"
    assert '"python": "3.14"' in (rootfs / "component.json").read_text()
