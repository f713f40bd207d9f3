"""The info and export commands. An exported file runs in a process that never imports this package."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from commands import call
from paths import GOLDEN

import vit_jax
from vit_jax.cli import export, info, onnx_files
from vit_jax.errors import UserError
from vit_jax.training.step import normalise

RUN = """
import sys, jax, jax.export, numpy as np
exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load(sys.argv[2])
np.save(sys.argv[3], np.asarray(exported.call(images)))
assert not [m for m in sys.modules if m.startswith("vit_jax")]
"""


@pytest.mark.parametrize("name", ["vit_token", "mixer"])
def test_an_exported_file_runs_alone_and_agrees(monkeypatch, capsys, tmp_path, name):
    path = tmp_path / "model.stablehlo"
    code, out, _ = call(monkeypatch, capsys, export, GOLDEN / f"{name}.npz", path, "--json")
    assert code == 0
    assert json.loads(out)["largest_difference"] <= 1e-5
    images = np.random.default_rng(0).integers(0, 256, size=(5, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    names = ("model.stablehlo", "x.npy", "y.npy")
    subprocess.run([sys.executable, "-c", RUN, *names], cwd=tmp_path, check=True, timeout=120)
    loaded = vit_jax.load(GOLDEN / f"{name}.npz")
    x = normalise(jax.numpy.asarray(images), loaded.spec.preprocess)
    wanted = loaded.model.apply({"params": loaded.params}, x)
    # The same operations, compiled as another program; logits of order one.
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), wanted, rtol=0, atol=1e-5)


def test_a_file_for_the_platform_of_this_machine_is_compared(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(export, "_gap", lambda *args: 5e-6)  # the file does not run on the CPU of this test
    args = (GOLDEN / "mixer.npz", tmp_path / "m.stablehlo", "--platforms", "rocm", "--json")
    for here, gap in (("cpu", None), ("rocm", 5e-6)):
        monkeypatch.setattr("jax.export.default_export_platform", lambda here=here: here)
        code, out, err = call(monkeypatch, capsys, export, *args)
        assert code == 0, err
        assert json.loads(out)["largest_difference"] == gap


def test_info_fits_a_screen(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, info, GOLDEN / "vit_token.npz")
    assert code == 0
    assert len(out.splitlines()) < 24
    assert "tanh GELU, epsilon 1e-06" in out
    facts = json.loads(call(monkeypatch, capsys, info, GOLDEN / "hybrid_resnet.npz", "--json")[1])
    assert facts["model"]["stem_width"] > 0
    assert facts["parameters"] > 0


@pytest.mark.parametrize("command", [info, export])
def test_a_bad_reference_is_one_line(monkeypatch, capsys, tmp_path, command):
    more = [tmp_path / "x"] if command is export else []
    code, _, err = call(monkeypatch, capsys, command, tmp_path / "nothing", *more)
    assert code == 2
    assert len(err) == 1


@pytest.mark.slow  # the converter is imported, and half a minute for each model
@pytest.mark.parametrize("name", ["vit_token", "mixer", "hybrid_resnet", "bigvision_map"])
def test_an_onnx_file_agrees_in_its_own_runtime(monkeypatch, capsys, tmp_path, name):
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    code, out, err = call(monkeypatch, capsys, export, GOLDEN / f"{name}.npz", tmp_path / "m.onnx", "--json")
    assert code == 0, err
    assert json.loads(out)["largest_difference"] <= 1e-5
    loaded, session = vit_jax.load(GOLDEN / f"{name}.npz"), runtime.InferenceSession(tmp_path / "m.onnx")
    for size in (1, 5):
        images = np.random.default_rng(0).integers(0, 256, size=(size, 32, 32, 3), dtype=np.uint8)
        (got,) = session.run(None, {session.get_inputs()[0].name: images})
        x = normalise(jax.numpy.asarray(images), loaded.spec.preprocess)
        # Logits of order one, by another compiler.
        np.testing.assert_allclose(got, loaded.model.apply({"params": loaded.params}, x), rtol=0, atol=1e-5)


def test_onnx_is_refused_where_it_cannot_be_written(monkeypatch, capsys, tmp_path):
    out = tmp_path / "m.onnx"
    hybrid = GOLDEN / "hybrid_stem.npz"
    code, _, err = call(monkeypatch, capsys, export, hybrid, out, "--platforms", "cpu")
    assert (code, len(err)) == (2, 1)
    assert "--platforms=cpu is for StableHLO" in err[0]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = call(monkeypatch, capsys, export, hybrid, out)
    assert (code, len(err)) == (2, 1)
    assert "install jax2onnx and onnxruntime (the extra onnx)" in err[0]
    assert not out.exists()


@pytest.mark.slow  # the converter is imported
def test_what_the_converter_does_not_know_is_named():
    pytest.importorskip("jax2onnx")
    on_host = lambda x: jax.pure_callback(lambda x: x, x, x)
    with pytest.raises(UserError, match=r"REF cannot be written as ONNX by jax2onnx \(.*callback.*\): name"):
        onnx_files.write("REF", on_host, (4,))
