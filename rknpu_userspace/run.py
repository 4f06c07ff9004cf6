# SPDX-License-Identifier: MIT
"""Run a program file: ``python3 -m rknpu_userspace run program.npz input.npy --output output.npy``.

The file is what ``npulab npu run MODEL --save program.npz`` writes. Numpy is all that is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import DeviceError, JobError

if TYPE_CHECKING:
    from .graph import Graph

Array = npt.NDArray[Any]
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_NO_DEVICE = 0, 1, 2, 4


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options about how to run, shared with the kit's command."""
    parser.add_argument("--seed", type=int, default=0, help="of random inputs, when no files are given (default 0)")
    parser.add_argument("--compare-cpu", action="store_true", help="compute everything on the CPU too, and compare")
    parser.add_argument("--profile", action="store_true", help="time every layer, each in a submission of its own")
    parser.add_argument("--strict", action="store_true", help="fail when a layer can not run on the NPU")
    parser.add_argument(
        "--repeat", type=_positive, default=1, metavar="N", help="run so often; the shortest time counts"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def read_array(path: Path) -> Array:
    """An .npy file; ValueError in one line when it is none."""
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ValueError(f"{path} can not be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not an array file of numpy (.npy)") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an archive, expected one array (.npy)")
    return array


def _load(path: Path) -> Graph:
    from .graph.file import load

    try:
        return load(path)
    except OSError as error:
        raise ValueError(f"{path} can not be read: {error.strerror or error}") from error


def operands(graph: Graph, paths: Sequence[Path], seed: int) -> list[Array]:
    """The inputs from files, or random ones. ValueError or TypeError when they are not what the graph takes."""
    from .graph.report import random_inputs

    if not paths:
        return random_inputs(graph, seed)
    if len(paths) != len(graph.inputs):
        raise ValueError(f"the model takes {len(graph.inputs)} inputs, {len(paths)} are given")
    arrays = [read_array(path) for path in paths]
    for path, array, tensor in zip(paths, arrays, graph.inputs, strict=True):
        if array.dtype != tensor.outside:
            raise TypeError(f"{path} has dtype {array.dtype}, input {tensor.name!r} takes {tensor.outside}")
        if array.shape != tensor.shape:
            raise ValueError(f"{path} has shape {array.shape}, input {tensor.name!r} takes {tensor.shape}")
    return arrays


def write_outputs(paths: Sequence[Path], results: Sequence[Array]) -> None:
    """Results to .npy files, in order; ValueError when there are more files than results."""
    if len(paths) > len(results):
        raise ValueError(f"the model has {len(results)} outputs, {len(paths)} files are named")
    for path, result in zip(paths, results, strict=False):
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as stream:
                np.save(stream, result)
            partial.replace(path)
        except OSError as error:
            raise ValueError(f"{path} can not be written: {error.strerror or error}") from error
        finally:
            partial.unlink(missing_ok=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rknpu-run", description="Run a program file on the NPU.")
    parser.add_argument("program", type=Path, help="program file (.npz)")
    parser.add_argument("inputs", type=Path, nargs="*", help="inputs (.npy), default random")
    parser.add_argument("--output", "-o", type=Path, action="append", default=[], help="where to write a result (.npy)")
    parser.add_argument("--device", default="/dev/accel/accel0", help='device node, or "model"')
    add_run_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    options = _parse(arguments)
    from .device import open_device
    from .graph.report import Options, execute, lines

    try:
        graph = _load(options.program)
        arrays = operands(graph, options.inputs, options.seed)
        how = Options(options.compare_cpu, options.profile, options.strict, options.repeat)
        with open_device(options.device) as device:
            results, document = execute(graph, device, arrays, how)
        write_outputs(options.output, results)
    except DeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_NO_DEVICE
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (JobError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    if options.json:
        print(json.dumps({"ok": True, **document}))
    else:
        print("\n".join(lines(document)))
    return EXIT_OK


if __name__ == "__main__":
    from .console import quietly

    sys.exit(quietly(main))
