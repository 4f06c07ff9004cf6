# SPDX-License-Identifier: MIT
"""``npulab npu run``: a TensorFlow Lite model, or a program file made from one, on the NPU or its model."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lab.errors import ExitCode, KitError
from lab.output import Output

if TYPE_CHECKING:
    from rknpu_userspace.graph import Graph

HELP = "run a TensorFlow Lite model: NPU where it can, CPU elsewhere, layer by layer"
SHORT_SECONDS = 30.0
BOARD_SECONDS = 600.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    from rknpu_userspace.run import add_run_options

    parser.add_argument("model", type=Path, help="a .tflite file (int8 or uint8), or a program file (.npz)")
    parser.add_argument(
        "--input", "-i", type=Path, action="append", default=[], metavar="FILE", help="inputs (.npy), default random"
    )
    parser.add_argument(
        "--output", "-o", type=Path, action="append", default=[], metavar="FILE", help="where to write results (.npy)"
    )
    parser.add_argument(
        "--device",
        default="model",
        help="model, virt (boots a virtual board), virt:NAME (one that npulab virt up has started), or a device node "
        "(default model)",
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="write a program file, which numpy alone can run")
    add_run_options(parser)


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Convert if need be, run, report."""
    from rknpu_userspace.graph.report import NotOnNpu, lines
    from rknpu_userspace.run import operands, write_outputs

    graph = load(args.model)
    try:
        arrays = operands(graph, args.input, args.seed)
        if args.save is not None:
            _save(graph, args.save)
        results, document = _execute(args, graph, arrays, out)
        write_outputs(args.output, results)
    except NotOnNpu as error:
        raise KitError(ExitCode.FAILED, f"{args.model}: {error}", "without --strict the CPU runs it") from error
    except (ValueError, TypeError) as error:
        raise KitError(ExitCode.USAGE, f"{args.model}: {error}", "npulab npu run --help") from error
    for line in lines(document):
        out.say(line)
    shapes = [{"shape": list(result.shape), "dtype": str(result.dtype)} for result in results]
    return {"ok": True, "model": str(args.model), **document, "outputs": shapes}


def load(path: Path) -> Graph:
    """A model or program file as a graph; KitError in one line for anything else."""
    if path.suffix != ".npz":
        from lab.npu import tflite

        return tflite.load(path)
    from rknpu_userspace.graph.file import load as load_program

    try:
        return load_program(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise KitError(ExitCode.USAGE, f"{path} can not be read: {reason}", "name a model or program file") from error
    except ValueError as error:
        raise KitError(ExitCode.FAILED, str(error), "make it again: npulab npu run MODEL --save FILE") from error


def _save(graph: Graph, path: Path) -> None:
    from rknpu_userspace.graph.file import save

    try:
        save(graph, path)
    except OSError as error:
        raise ValueError(f"{path} can not be written: {error.strerror or error}") from error


def _execute(
    args: argparse.Namespace, graph: Graph, arrays: Sequence[Any], out: Output
) -> tuple[Sequence[Any], dict[str, Any]]:
    from rknpu_userspace.device import open_device
    from rknpu_userspace.graph.report import Options, compare, execute

    if args.device != "virt" and not args.device.startswith("virt:"):
        how = Options(args.compare_cpu, args.profile, args.strict, args.repeat)
        with open_device(args.device) as device:
            return execute(graph, device, arrays, how)
    results, document = _on_board(args, graph, arrays, out)
    if args.compare_cpu:  # not on the board, whose processor is emulated
        document |= compare(graph, arrays, results)
    return results, document


def _on_board(
    args: argparse.Namespace, graph: Graph, arrays: Sequence[Any], out: Output
) -> tuple[Sequence[Any], dict[str, Any]]:
    """Take program and inputs to a virtual board, run them there, bring the results back."""
    import numpy as np

    from rknpu_userspace.graph.file import save

    inputs = [f"in{index}.npy" for index in range(len(arrays))]
    outputs = [f"out{index}.npy" for index in range(len(graph.outputs))]
    with tempfile.TemporaryDirectory(prefix="npulab-run-") as temporary, remote(args.device, out) as board:
        here = Path(temporary)
        save(graph, here / "program.npz")
        for name, array in zip(inputs, arrays, strict=True):
            np.save(here / name, array)
        place = board.run("mktemp -d /tmp/npulab-run.XXXXXX", SHORT_SECONDS)[0].strip()
        try:
            for path in sorted(here.iterdir()):
                board.put(path, f"{place}/{path.name}")
            with out.stage("running on the virtual board"):
                text, code = board.run(f"cd {place} && {_command(args, inputs, outputs)} 2>&1", BOARD_SECONDS)
            last = (text.strip().splitlines() or ["no output"])[-1]
            if code:
                message = f"{args.model} on the virtual board: {last.removeprefix('error: ')}"
                raise KitError(ExitCode.FAILED, message, "npulab virt up, npulab virt shell: look at the kernel's log")
            for name in outputs:
                board.get(f"{place}/{name}", here / name)
        finally:
            board.run(f"rm -rf {place}", SHORT_SECONDS)
        results = [np.load(here / name) for name in outputs]
    document: dict[str, Any] = json.loads(last)
    return results, document | {"device": args.device}


def _command(args: argparse.Namespace, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """What runs on the board."""
    words = ["python3", "-m", "rknpu_userspace", "run", "program.npz", *inputs, "--json", "--repeat", str(args.repeat)]
    words += [word for name in outputs for word in ("-o", name)]
    words += [flag for flag, wanted in (("--profile", args.profile), ("--strict", args.strict)) if wanted]
    return shlex.join(words)


class Remote(Protocol):
    """A booted board."""

    def run(self, command: str, timeout: float) -> tuple[str, int]:
        """What a shell command prints, and its exit code."""
        ...

    def put(self, path: Path, target: str) -> None:
        """Copy a file to the board."""
        ...

    def get(self, source: str, path: Path) -> None:
        """Copy a file from the board."""
        ...


class BackgroundRemote:
    """A board that runs in the background, over ssh."""

    def __init__(self, name: str) -> None:
        from lab.commands.virt import ssh_command
        from lab.virt.background import find_board

        self._ssh = ssh_command(find_board(name or None))

    def _call(self, command: str, timeout: float, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        try:
            done = subprocess.run([*self._ssh, command], input=data, capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise KitError(ExitCode.LINK, f"the virtual board did not answer within {timeout:.0f} s", "") from error
        if done.returncode == 255:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [""]
            raise KitError(ExitCode.LINK, f"ssh to the virtual board failed: {said[0]}", "npulab virt list")
        return done

    def run(self, command: str, timeout: float) -> tuple[str, int]:
        """See Remote."""
        done = self._call(command, timeout)
        return done.stdout.decode(errors="replace"), done.returncode

    def put(self, path: Path, target: str) -> None:
        """See Remote."""
        done = self._call(f"cat > {shlex.quote(target)}", BOARD_SECONDS, path.read_bytes())
        if done.returncode:
            raise KitError(ExitCode.LINK, f"{target} could not be written on the virtual board", "is its memory full?")

    def get(self, source: str, path: Path) -> None:
        """See Remote."""
        done = self._call(f"cat {shlex.quote(source)}", BOARD_SECONDS)
        if done.returncode:
            raise KitError(ExitCode.LINK, f"{source} could not be read from the virtual board", "")
        path.write_bytes(done.stdout)


class SessionRemote:
    """A board that was booted for this run, through labgrid's drivers."""

    def __init__(self, session: Any) -> None:
        self._ssh = session.target.get_active_driver("SSHDriver")

    def run(self, command: str, timeout: float) -> tuple[str, int]:
        """See Remote."""
        lines, _, code = self._ssh.run(command, timeout=timeout)
        return "\n".join(lines), code

    def put(self, path: Path, target: str) -> None:
        """See Remote."""
        self._ssh.put(str(path), target)

    def get(self, source: str, path: Path) -> None:
        """See Remote."""
        self._ssh.get(source, str(path))


@contextlib.contextmanager
def remote(device: str, out: Output) -> Iterator[Remote]:
    """The board that ``--device`` names; one that is booted here is stopped again."""
    _, _, name = device.partition(":")
    if name:
        yield BackgroundRemote(name)
        return
    from lab.virt.results import new_results_dir
    from lab.virt.select import board_config, find_artifacts
    from lab.virt.session import BoardSession

    config = board_config(find_artifacts(None, "fast", out))
    with BoardSession(config, new_results_dir("run")) as session:
        with out.stage("booting the virtual board"):
            session.to("ssh")
        yield SessionRemote(session)
        session.to("off")
