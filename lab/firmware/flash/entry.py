# SPDX-License-Identifier: MIT
"""A kernel beside the one that runs: planned, brought over, armed for one start, made permanent or taken away again.

Nothing that exists on the board is replaced but ``extlinux.conf``, and that atomically, last, and with its old content
kept beside it and in the run's directory. The new entry becomes the default together with a first process
(``oneshot-init.sh``) that restores the old default before the system starts, and with ``fallback`` set to the old entry
for loaders that count starts (`lab.firmware.flash.bootcount`).
"""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lab.boards import Board
from lab.cache import digest, file_digest
from lab.errors import ExitCode, KitError
from lab.firmware.flash import bootcount, extlinux, gate
from lab.firmware.flash import payload as payloads
from lab.firmware.flash.engine import Journal
from lab.firmware.flash.payload import File, Payload
from lab.firmware.flash.plan import Item
from lab.firmware.flash.target import CONF, PART, Mount, Survey, Target, survey
from lab.firmware.identity import Verdict, compare
from lab.firmware.medium import Transport
from lab.firmware.store import Store, disk
from lab.firmware.transports.linux import LinuxTransport
from lab.output import Meter

KIND = "entry"
HEARTBEAT = 300
"""Seconds after which a board on trial restarts itself unless it was vouched for."""
BEFORE = CONF + ".npulab-before"
SPARE = 2 << 20
"""Bytes to leave free on the board."""
INIT = Path(__file__).with_name("oneshot-init.sh")
MARK = "npulab.entry="
DEPMOD = (
    *("alias", "alias.bin", "builtin.alias.bin", "builtin.bin", "dep", "dep.bin", "devname", "softdep"),
    *("symbols", "symbols.bin", "weakdep"),
)
"""What depmod makes below a kernel's modules; without modules they say nothing."""


@dataclass(frozen=True)
class EntryPlan:
    """A run. ``conf`` is extlinux.conf as it was found; ``folder`` where the entry's files go, ``inside`` the same for
    the loader; ``append`` the entry's command line without what makes it a trial."""

    id: str
    board: str
    identity: dict[str, str]
    backup: str
    items: tuple[Item, ...]
    payload: Payload
    conf: str
    folder: str
    inside: str
    append: str
    trial: str
    init: str
    points: tuple[str, ...]
    notes: tuple[str, ...]
    created: str
    identity_trusted: bool = False
    kind: str = KIND

    def storages(self) -> list[str]:
        """The media that are written."""
        return list(dict.fromkeys(item.storage for item in self.items))

    def label(self, append: str) -> extlinux.Label:
        """The loader's entry."""
        files = self.payload
        initrd = f"{self.inside}/{payloads.INITRD}" if files.initrd else ""
        title = f"Linux {files.release} (npulab)"
        tree = f"{self.inside}/{payloads.TREE}"
        return extlinux.Label(files.name, f"{self.inside}/{payloads.KERNEL}", append, initrd, tree, menu=title)

    @property
    def old_default(self) -> str:
        """The entry that is fallen back to."""
        return extlinux.parse(self.conf).attempts()[0].name

    @property
    def armed(self) -> str:
        """extlinux.conf for one start of the new entry."""
        return extlinux.with_entry(self.conf, self.label(self.trial), self.payload.name, self.old_default)

    @property
    def permanent(self) -> str:
        """extlinux.conf once the entry has proven itself."""
        return extlinux.with_entry(self.conf, self.label(self.append), self.payload.name, self.old_default)

    def path(self, file: File) -> str:
        """Where a file goes on the board."""
        return f"{self.folder}/{file.path}" if file.place == "boot" else f"/{file.path}"

    @property
    def init_path(self) -> str:
        """The trial's first process."""
        return _init_path(self.payload.name)

    @property
    def alive(self) -> str:
        """The file in /dev whose presence says that somebody vouches for the trial."""
        return _alive(self.payload.name)


def _init_path(name: str) -> str:
    return f"/usr/lib/npulab/{name}/init"


def _alive(name: str) -> str:
    return f"npulab-alive-{name}"


def entry_of(cmdline: str) -> str:
    """Which entry of ours a running kernel was started by; empty when by none."""
    return next((word for word in cmdline.split() if word.startswith(MARK)), "").removeprefix(MARK)


@dataclass(frozen=True)
class EntryWish:
    """What the user wants."""

    artifacts: Path
    backup: str | None = None
    trust_identity: bool = False
    max_age: int = gate.MAX_AGE_DAYS
    heartbeat: int = HEARTBEAT


def linux(transport: Transport) -> LinuxTransport:
    """The transport, when it reaches a running Linux."""
    if not isinstance(transport, LinuxTransport):
        raise KitError(
            ExitCode.USAGE,
            f"{transport.name}: an artifact set is put beside the system that runs",
            "reach the board with --via ssh:, virt: or serial:, or write an --image",
        )
    return transport


def _medium(transport: LinuxTransport, found: Survey, mount: Mount) -> Item:
    """The partition that a file system is on, as the gate wants it."""
    where, device = transport.located(mount.number), found.device_of(mount)
    if where is None or device is None:
        raise KitError(
            ExitCode.REFUSED,
            f"{mount.point} is on {mount.source}, which is no medium of the board file: no backup can cover it",
            "start the board from its own medium",
        )
    if not mount.writable:
        raise KitError(ExitCode.REFUSED, f"{mount.point} is mounted read-only", f"mount -o remount,rw {mount.point}")
    return Item(where[0], where[1], device[1], device[1] + device[2], False, -1)


def _append(found: Survey, label: extlinux.Label, initrd: bool) -> tuple[str, str]:
    """The old entry's command line for the new kernel, and the first process that it names."""
    init = ""
    words = []
    for word in label.append.split():
        if word.startswith("init="):
            init = word.partition("=")[2]
        if word.startswith((MARK, "initrd=")):
            continue
        if word.startswith(("root=UUID=", "root=LABEL=")) and not initrd:
            # only an initramfs understands these; the kernel itself knows devices and PARTUUID
            name, _, _, partuuid = found.device_of(found.mount_of("/")) or ("", 0, 0, "")
            word = f"root=PARTUUID={partuuid}" if partuuid else f"root=/dev/{name}"
        words.append(word)
    if not any(word.startswith("root=") for word in words):
        raise KitError(
            ExitCode.REFUSED, f"the entry {label.name} does not say which root device it boots", "add root= to it"
        )
    if not initrd and "rootwait" not in words:
        words.append("rootwait")
    return " ".join(words), init


def _check_conf(found: Survey, text: str | None, name: str) -> extlinux.Label:
    """The entry that boots today; KitError (refused) when the board would not start by itself, or is on trial."""
    if text is None or not found.has_conf:
        raise KitError(
            ExitCode.REFUSED, f"the board has no {CONF}", "only loaders that read it are served: U-Boot's standard boot"
        )
    if "sha256sum" not in found.tools:
        raise KitError(ExitCode.REFUSED, "the board has no sha256sum", "install coreutils or busybox on it")
    config = extlinux.parse(text)
    order = config.attempts()
    if not order or config.label(config.default) is None:
        raise KitError(ExitCode.REFUSED, f"{CONF} has no default entry", "give it one, so that there is a way back")
    if config.waits:
        raise KitError(
            ExitCode.REFUSED,
            f"{CONF}: its menu has no timeout, so U-Boot waits for a key for ever",
            "add a line such as: timeout 30",
        )
    running = entry_of(found.cmdline)
    if running and running != order[0].name:
        raise KitError(ExitCode.REFUSED, f"the board runs {running} on trial", "commit or roll back that run first")
    if order[0].name == name:
        raise KitError(ExitCode.USAGE, f"{name} is the board's default already", "there is nothing to flash")
    return order[0]


def _coverage(found: Survey, heartbeat: int) -> list[str]:
    """What leads back to the old entry, and what does not."""
    notes = [
        "a kernel that the loader cannot load or does not take for one: the loader starts the old entry at once",
        f"anything after the first process has started: every restart is the old entry's, the last after {heartbeat} s",
    ]
    if found.count.proven:
        notes.append(
            "a kernel that dies or hangs before that: the loader counts starts; the next one is the old entry's"
        )
    else:
        notes.append(
            "NOT COVERED: a kernel that dies or hangs before its first process; this loader does not count starts. "
            "Have its console or a way over USB at hand (docs/firmware.md)"
        )
    if "fsfreeze" not in found.tools:
        notes.append("the board has no fsfreeze: after a power cut the loader may still see what was before")
    return notes


def prepare(
    store: Store, board: Board, transport: Transport, wish: EntryWish, meter: Meter, create_command: str
) -> EntryPlan:
    """A plan that has passed the gate; nothing is written."""
    reached = linux(transport)
    payload = payloads.load(wish.artifacts, board)
    found, target = survey(reached), Target(reached)
    raw = target.read(CONF)
    text = raw.decode(errors="surrogateescape") if raw is not None else None
    old = _check_conf(found, text, payload.name)
    assert text is not None
    boot, root = found.mount_of("/boot"), found.mount_of("/")
    separate = boot.point == "/boot"
    items = list(dict.fromkeys(_medium(reached, found, mount) for mount in (boot, root)))
    _check_space(found, payload, separate)
    append, init = _append(found, old, payload.initrd)
    trial = [word for word in append.split() if not word.startswith("init=")]
    trial += [] if any(word.startswith("panic=") for word in trial) else ["panic=10"]
    trial += [f"{MARK}{payload.name}", f"init={_init_path(payload.name)}"]
    identity = dict(reached.identify())
    sizes = {entry.name: entry.size for entry in reached.storages()}
    trust = wish.trust_identity
    backup = gate.find_backup(
        store, identity, items, sizes, create_command, wanted=wish.backup, trust_identity=trust, max_age=wish.max_age
    )
    gate.assert_readable(store, backup, items, meter)
    mode = "rw" if "rw" in append.split() else "ro"
    script = _init_script(payload.name, boot if separate else None, boot.point, mode, wish.heartbeat, init)
    now = datetime.datetime.now(datetime.UTC)
    key = digest(board.name, identity, payload.name, now.isoformat())
    return EntryPlan(
        id=f"flash-{now.strftime('%Y%m%dt%H%M%Sz')}-{key[:6]}",
        board=board.name,
        identity=identity,
        backup=backup.id,
        items=tuple(items),
        payload=payload,
        conf=text,
        folder=f"/boot/npulab/{payload.name}",
        inside=f"{'' if separate else '/boot'}/npulab/{payload.name}",
        append=f"{append} {MARK}{payload.name}",
        trial=" ".join(trial),
        init=script,
        points=tuple(dict.fromkeys((root.point, boot.point))),
        notes=tuple(_coverage(found, wish.heartbeat)),
        created=now.isoformat(timespec="seconds"),
        identity_trusted=trust,
    )


def _check_space(found: Survey, payload: Payload, separate: bool) -> None:
    need = {"/boot": 0, "/": 0}
    for file in payload.files:
        need["/boot" if file.place == "boot" and separate else "/"] += file.size + 4096
    for point, size in need.items():
        free = found.free.get(point, 0)
        if size and size + SPARE > free:
            raise KitError(
                ExitCode.REFUSED,
                f"{point} on the board has {free >> 20} MiB free, {(size + SPARE) >> 20} MiB are needed",
                "remove old kernels there (npulab flash rollback takes away what a run has brought)",
            )


def _init_script(name: str, boot: Mount | None, point: str, mode: str, seconds: int, init: str) -> str:
    """The trial's first process for this board."""
    words = {
        "CONF": CONF,
        "BOOTDEV": boot.source if boot else "",
        "BOOTTYPE": boot.kind if boot else "",
        "MOUNT": point,
        "ROOTMODE": mode,
        "SECONDS": str(seconds),
        "ALIVE": _alive(name),
        "INIT": init,
    }
    text = INIT.read_text()
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def dump(plan: EntryPlan) -> bytes:
    """The plan as a file."""
    return json.dumps(asdict(plan), indent=1).encode() + b"\n"


def parse(raw: dict[str, Any]) -> EntryPlan:
    """The plan of a run's file."""
    payload = {**raw["payload"], "files": tuple(File(**file) for file in raw["payload"]["files"])}
    items = tuple(Item(**item) for item in raw["items"])
    tuples = {name: tuple(raw[name]) for name in ("points", "notes")}
    return EntryPlan(**{**raw, **tuples, "payload": Payload(**payload), "items": items})


@dataclass(frozen=True)
class Staged:
    """Bytes brought over and bytes that were there."""

    written: int
    present: int


class EntrySession:
    """A run: plan, journal, and the steps on the board."""

    def __init__(self, store: Store, plan: EntryPlan) -> None:
        self.store, self.plan = store, plan
        self.directory = store.runs / plan.id
        self.journal = Journal(self.directory)

    @staticmethod
    def load(path: Path, store: Store) -> EntrySession | None:
        """The run of a plan's file; None when it is a run of another kind (or none: its own reader says why)."""
        try:
            raw = json.loads(path.read_text())
            if not isinstance(raw, dict) or raw.get("kind") != KIND:
                return None
            return EntrySession(store, parse(raw))
        except (OSError, ValueError):
            return None
        except (KeyError, TypeError) as error:
            raise KitError(ExitCode.MISMATCH, f"{path}: damaged plan ({error})", "plan again") from error

    def save(self) -> None:
        """Keep the plan; the journal begins."""
        disk.make_dir(self.directory)
        disk.replace(self.directory / "plan.json", dump(self.plan))
        disk.replace(self.directory / "extlinux.conf", self.plan.conf.encode(errors="surrogateescape"))
        self.journal.add("planned", backup=self.plan.backup, trusted=self.plan.identity_trusted)

    def check_open(self) -> None:
        """Has this run not been rolled back?"""
        if self.journal.state in ("rolling-back", "rolled-back"):
            raise KitError(ExitCode.USAGE, f"{self.plan.id} is {self.journal.state}", "plan again")

    def check_board(self, transport: LinuxTransport) -> None:
        """Is this still the board that was planned for?"""
        match = compare(self.plan.identity, transport.identify(), self.plan.storages())
        if match.verdict is Verdict.OTHER or (match.verdict is Verdict.UNKNOWN and not self.plan.identity_trusted):
            raise KitError(
                ExitCode.REFUSED,
                f"not the board that {self.plan.id} was planned for: {match.reason}",
                "connect the right one",
            )

    def stage(self, transport: LinuxTransport, meter: Meter) -> Staged:
        """Bring the files over, or go on with that; nothing that boots today is touched."""
        self.check_open()
        self.check_board(transport)
        gate.assert_readable(self.store, self.store.load(self.plan.backup), self.plan.items, meter)
        target, payload = Target(transport), self.plan.payload
        for file in payload.files:
            if file_digest(Path(file.source)) != file.sha256:
                raise KitError(ExitCode.REFUSED, f"{file.source} changed since the plan was made", "plan again")
        if "writing" not in self.journal.states():
            there = target.existing([self.plan.path(file) for file in payload.files])
            self.journal.add("writing", there=there)
        done, written, present = 0, 0, 0
        for file in payload.files:

            def advance(more: int, name: str = file.path) -> None:
                nonlocal done
                done += more
                meter.update(done, payload.size, name)

            if target.put(self.plan.path(file), Path(file.source), file.sha256, file.mode, advance):
                written += file.size
            else:
                present += file.size
        target.write(self.plan.init_path, self.plan.init.encode(), 0o755)
        if any(file.path.endswith(".ko") for file in payload.files):
            depmod = f'depmod -b "${{NPULAB_ROOT:-}}/usr" {payload.release}'
            transport.remote.run(f"! command -v depmod >/dev/null || {depmod}", timeout=120)
        target.checkpoint(list(self.plan.points))
        self.journal.add("written")
        return Staged(written, present)

    def arm(self, transport: LinuxTransport) -> None:
        """Make the entry the default for one start. The configuration is the last thing that changes."""
        target = Target(transport)
        now = target.read(CONF)
        old, armed = (text.encode(errors="surrogateescape") for text in (self.plan.conf, self.plan.armed))
        if now not in (old, armed):
            raise KitError(ExitCode.REFUSED, f"{CONF} on the board changed since the plan was made", "plan again")
        target.write(BEFORE, old)
        found = survey(transport)
        if found.count.valid:
            target.overwrite(bootcount.PLACE, bootcount.Count(0).encode())
        target.write(CONF, armed)
        target.checkpoint(list(self.plan.points))
        self.journal.add("armed", boot=found.boot_id)

    def disarm(self, transport: LinuxTransport, text: str | None = None) -> None:
        """The old configuration (or ``text``) for good, and no counting."""
        target = Target(transport)
        wanted = (self.plan.conf if text is None else text).encode(errors="surrogateescape")
        if target.read(CONF) != wanted:
            target.write(CONF, wanted)
        found = survey(transport)
        if found.count.valid and found.count.available:
            # the count itself stays: it is the proof that this loader counts
            target.overwrite(bootcount.PLACE, replace(found.count, available=False).encode())
        target.checkpoint(list(self.plan.points))

    def vouch(self, transport: LinuxTransport) -> None:
        """Tell the trial's guard that somebody has seen the board well."""
        transport.remote.run(f': > "${{NPULAB_ROOT:-}}/dev/{self.plan.alive}"')

    def commit(self, transport: LinuxTransport) -> None:
        """The entry is the default from now on; the old one stays as the fallback."""
        if self.journal.state == "committed":
            return
        if self.journal.state != "verified":
            raise KitError(
                ExitCode.USAGE, f"{self.plan.id} is {self.journal.state}, not verified", "finish the run first"
            )
        self.check_board(transport)
        text = Target(transport).read(CONF)
        known = [self.plan.conf, self.plan.armed, self.plan.permanent]
        if text is None or text.decode(errors="surrogateescape") not in known:
            raise KitError(ExitCode.REFUSED, f"{CONF} on the board changed since the plan was made", "plan again")
        self.disarm(transport, self.plan.permanent)
        Target(transport).remove([BEFORE], [])
        self.journal.add("committed")

    def restore_conf(self, transport: LinuxTransport) -> None:
        """The configuration without this entry; lines that others have changed since stay."""
        target = Target(transport)
        raw = target.read(CONF)
        text = raw.decode(errors="surrogateescape") if raw is not None else self.plan.conf
        if text not in (self.plan.conf, self.plan.armed, self.plan.permanent):
            text = extlinux.without_entry(text, self.plan.payload.name)
            left = extlinux.parse(text)
            if left.default == self.plan.payload.name:
                text = extlinux.with_default(text, self.plan.old_default)
            if left.fallback == self.plan.payload.name:
                text = extlinux.with_fallback(text, self.plan.old_default)
            self.disarm(transport, text)
        else:
            self.disarm(transport)

    def clear(self, transport: LinuxTransport) -> int:
        """Take away what the run has brought; returns the number of files. What was there before it stays."""
        target, plan = Target(transport), self.plan
        there: list[str] = next((e["there"] for e in self.journal.entries() if e["state"] == "writing"), [])
        payload = [plan.path(file) for file in plan.payload.files]
        ours = [path for path in payload if path not in there]
        partial = [path + PART for path in [*payload, CONF, BEFORE, plan.init_path]]
        modules = f"/{payloads.MODULES}/{plan.payload.release}"
        folders = sorted({str(Path(path).parent) for path in ours if path.startswith(modules)}, key=len, reverse=True)
        extra = [f"{modules}/modules.{name}" for name in DEPMOD] if any(path.endswith(".ko") for path in ours) else []
        places = (plan.folder, "/boot/npulab", str(Path(plan.init_path).parent), "/usr/lib/npulab", modules)
        target.remove([*ours, *partial, *extra, plan.init_path, BEFORE, CONF + ".npulab-new"], [*folders, *places])
        target.checkpoint(list(plan.points))
        return len(ours)
