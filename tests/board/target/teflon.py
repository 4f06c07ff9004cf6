# SPDX-License-Identifier: MIT
"""Runs models twice on the board, by TensorFlow Lite's own kernels and by a delegate, and prints how they compare.

teflon.py DELEGATE MODELS: a JSON list, one row per .tflite file of the directory MODELS in the order of their names.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType, load_delegate


def npu_interrupts() -> int:
    """Interrupts of the NPU's cores since the boot: one per finished task."""
    lines = Path("/proc/interrupts").read_text().splitlines()
    processors = len(lines[0].split())
    own = [line.split() for line in lines if line.rstrip().endswith(".npu")]
    return sum(int(word) for words in own for word in words[1 : 1 + processors])


class Run:
    """A model, ready to be invoked with or without delegates."""

    def __init__(self, path: Path, delegates: list[Any]) -> None:
        self._model = Interpreter(
            model_path=str(path),
            experimental_delegates=delegates,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        self._model.allocate_tensors()
        (self.input,) = self._model.get_input_details()
        (self.output,) = self._model.get_output_details()

    @property
    def plan(self) -> list[str]:
        """What is executed: names of operators; a delegate's part is DELEGATE."""
        return [str(entry["op_name"]) for entry in self._model._get_ops_details()]

    def __call__(self, data: np.ndarray) -> np.ndarray:
        self._model.set_tensor(self.input["index"], data)
        self._model.invoke()
        return self._model.get_tensor(self.output["index"]).copy()


def compare(path: Path, delegate: Any) -> dict[str, Any]:
    """One model on processor and NPU, the NPU twice: a second invocation finds buffers and registers used."""
    processor, npu = Run(path, []), Run(path, [delegate])
    data = np.random.default_rng(7).integers(0, 256, processor.input["shape"]).astype(np.uint8)
    wanted = processor(data).astype(int)
    before, started = npu_interrupts(), time.monotonic()
    got = npu(data)
    seconds, tasks = time.monotonic() - started, npu_interrupts() - before
    difference = np.abs(got - wanted)
    return {
        "name": path.stem,
        "delegated": "DELEGATE" in npu.plan,
        "operators": [name for name in npu.plan if name != "DELEGATE"],
        "shape": list(got.shape),
        "tasks": tasks,
        "seconds": seconds,
        "again": bool(np.array_equal(got, npu(data))),
        "spread": float(wanted.std()),
        "max_error": int(difference.max()),
        "max_error_inside": int(difference[:, 1:-1, 1:-1].max()),
        "off_by_one": float((difference == 1).mean()),
        "different": int(np.count_nonzero(difference)),
        "elements": difference.size,
    }


def main() -> None:
    """Compare all models."""
    delegate = load_delegate(sys.argv[1])
    print(json.dumps([compare(path, delegate) for path in sorted(Path(sys.argv[2]).glob("*.tflite"))]))


main()
