# SPDX-License-Identifier: MIT
"""Does KVM run guests here? On some hosts ``/dev/kvm`` opens and makes machines whose first instruction never ends.

The virtual board is emulated and does not use KVM, so this fails nothing; it is for who wonders why another QEMU hangs.
``python -m lab.host.kvm`` is the probe: a guest of one ``hlt`` instruction, in a process that can be given up.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

from lab.host import Check

PROBE_SECONDS = 5.0
# linux include/uapi/linux/kvm.h
KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE = 0xAE00, 0xAE01, 0xAE04
KVM_CREATE_VCPU, KVM_RUN, KVM_SET_USER_MEMORY_REGION = 0xAE41, 0xAE80, 0x4020AE46
KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS = 0x4090AE82, 0x8138AE83, 0x4138AE84
KVM_EXIT_HLT, API_VERSION = 5, 12
HLT = b"\xf4"


def probe(device: str = "/dev/kvm") -> str:
    """``runs`` after a guest ran to its ``hlt``; ``made`` where only a machine was made (not x86); raises OSError."""
    kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    if fcntl.ioctl(kvm, KVM_GET_API_VERSION) != API_VERSION:
        raise OSError(f"{device} is not KVM")
    machine = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
    if platform.machine() != "x86_64":
        return "made"
    memory = mmap.mmap(-1, 0x1000)
    memory[: len(HLT)] = HLT
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(machine, KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0x1000, 0x1000, address))
    cpu = fcntl.ioctl(machine, KVM_CREATE_VCPU, 0)
    state = mmap.mmap(cpu, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE))
    special = bytearray(312)
    fcntl.ioctl(cpu, KVM_GET_SREGS, special)
    # struct kvm_segment cs comes first: base (u64), limit (u32), selector (u16)
    struct.pack_into("<Q", special, 0, 0)
    struct.pack_into("<H", special, 12, 0)
    fcntl.ioctl(cpu, KVM_SET_SREGS, bytes(special))
    # struct kvm_regs: 16 general registers, rip, rflags
    fcntl.ioctl(cpu, KVM_SET_REGS, struct.pack("<18Q", *([0] * 16), 0x1000, 2))
    fcntl.ioctl(cpu, KVM_RUN, 0)
    reason = struct.unpack_from("<I", state, 8)[0]
    if reason != KVM_EXIT_HLT:
        raise OSError(f"the guest left with reason {reason}")
    return "runs"


def check(device: Path = Path("/dev/kvm"), command: tuple[str, ...] = (sys.executable, "-m", "lab.host.kvm")) -> Check:
    """KVM's line: absent, closed to this user, lying, or good. The kit does without in any case."""
    unused = "the virtual board does not use it"
    if not device.exists():
        return Check("KVM", True, f"not here; {unused}", needed=False)
    if not os.access(device, os.R_OK | os.W_OK):
        todo = f"{unused}; for other machines: sudo usermod -aG kvm $USER, then log in again"
        return Check("KVM", False, "this user may not open it", todo, needed=False)
    lie = f"do not give other QEMUs -enable-kvm here; {unused}"
    try:
        done = subprocess.run(
            [*command, str(device)], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Check(
            "KVM", False, f"it lies: a guest of one instruction did not end in {PROBE_SECONDS:.0f} s", lie, False
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"the probe ended with {done.returncode}"])[-1]
        return Check("KVM", False, f"it opens, but does not run a guest: {last}", lie, needed=False)
    return Check("KVM", True, f"{'runs guests' if 'runs' in done.stdout else 'makes machines'}; {unused}", needed=False)


if __name__ == "__main__":
    try:
        print(probe(sys.argv[1]))
    except OSError as error:
        sys.exit(str(error))
