# SPDX-License-Identifier: MIT
"""``npulab npu run`` and ``python3 -m rknpu_userspace run``: results, reports, and errors in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tflite_network import Network, interpret

from lab.cli import main as npulab
from rknpu_userspace.run import main as tool


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolution, sum and softmax; input and TensorFlow Lite's result beside it."""
    place = tmp_path_factory.mktemp("model")
    net = Network((1, 10, 12, 8), 1)
    y = net.binary("ADD", net.conv(net.input, 8, 3), net.input)
    data = net.finish(net.softmax(net.linear(y, 10)))
    (place / "model.tflite").write_bytes(data)
    np.save(place / "x.npy", net.x)
    np.save(place / "wanted.npy", interpret(data, net.x)[0])
    return place


def test_run_save_and_run_again(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y, z, program = (str(model / name) for name in ("x.npy", "y.npy", "z.npy", "p.npz"))
    options = ["--compare-cpu", "--profile", "--json"]
    code = npulab(["npu", "run", str(model / "model.tflite"), "-i", x, "-o", y, "--save", program, *options])
    document = json.loads(capsys.readouterr().out)
    assert code == 0 and document["ok"]
    assert [layer["unit"] for layer in document["layers"]] == ["npu", "npu", "npu", "cpu"]
    assert all(layer["seconds"] > 0 for layer in document["layers"])
    assert (document["submissions"], document["jobs"]) == (1, 1)
    assert document["tasks"] == sum(layer["tasks"] for layer in document["layers"])
    assert document["macs"] == 10 * 12 * 8 * 8 * 9 + 10 * 12 * 8 * 10
    assert document["compared"][0]["greatest"] <= 4
    wanted = np.load(model / "wanted.npy").astype(int)
    assert np.abs(np.load(y).astype(int) - wanted).max() <= 4
    assert tool([program, x, "-o", z, "--device", "model"]) == 0
    assert "1 submissions, 1 jobs" in capsys.readouterr().out
    assert np.array_equal(np.load(y), np.load(z))


def test_random_inputs_are_reproducible(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for seed in ("1", "1", "2"):
        out = str(model / "random.npy")
        assert npulab(["npu", "run", str(model / "model.tflite"), "--seed", seed, "-o", out]) == 0
        results.append(np.load(out))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    assert "softmax" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["model.tflite", "--strict"], 1, "(softmax) does not run on the NPU"),
        (["model.tflite", "-i", "wanted.npy"], 2, "has shape (1, 10), input 't0' takes (1, 10, 12, 8)"),
        (["model.tflite", "-i", "float.npy"], 2, "has dtype float64, input 't0' takes int8"),
        (["model.tflite", "-i", "model.tflite"], 2, "is not an array file of numpy"),
        (["model.tflite", "-i", "x.npy", "-i", "x.npy"], 2, "takes 1 inputs, 2 are given"),
        (["model.tflite", "-o", "a.npy", "-o", "b.npy"], 2, "has 1 outputs, 2 files are named"),
        (["model.tflite", "-o", "no/such/y.npy"], 2, "can not be written: No such file"),
        (["model.tflite", "--save", "no/such/p.npz"], 2, "can not be written: No such file"),
        (["x.npy"], 1, "is not a TensorFlow Lite model"),
        (["nothing.npz"], 2, "can not be read: No such file"),
        (["broken.npz"], 1, "is not a program file of this library"),
        (["other.npz"], 1, "is not a program file of this library"),
        (["model.tflite", "--device", "virt:nobody"], 4, "no virtual board"),
        (["model.tflite", "--device", "/dev/null/nothing"], 4, "/dev/null/nothing"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    code: int,
    message: str,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(model)
    np.save("float.npy", np.zeros((1, 10, 12, 8)))
    Path("broken.npz").write_bytes(b"PK\3\4" + bytes(100))
    np.savez("other.npz", a=np.zeros(3))
    assert npulab(["npu", "run", *arguments]) == code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not list(model.glob("*.partial"))


def test_the_target_needs_numpy_only(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The runner imports nothing of the host's packages."""
    assert npulab(["npu", "run", str(model / "model.tflite"), "--save", str(model / "q.npz")]) == 0
    capsys.readouterr()
    import subprocess

    script = (
        "import sys; from rknpu_userspace.run import main; code = main(sys.argv[1:]);"
        "bad = {'tflite', 'flatbuffers', 'lab', 'rich'} & set(sys.modules); sys.exit(code or len(bad))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(model / "q.npz"), "--device", "model"], check=False)
    assert done.returncode == 0
