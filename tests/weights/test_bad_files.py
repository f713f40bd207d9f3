"""Broken, wrong and hostile files: one clear line each, nothing loaded, run or allocated."""

import io
import pickle
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from paths import GOLDEN

from vit_jax.errors import UserError
from vit_jax.weights.load import read


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "vit_token.npz") as file:
        return {name: file[name] for name in file.files}


def refused(path: Path, *parts: str) -> str:
    with pytest.raises(UserError) as error:
        read(path)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def put(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def npy(array: np.ndarray, **header: object) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array) | header)
    return stream.getvalue() + array.tobytes()


def test_no_file_a_folder_and_an_unknown_name(tmp_path):
    refused(tmp_path / "w.npz", "there is no file", "check the path")
    (tmp_path / "folder.npz").mkdir()
    refused(tmp_path / "folder.npz", "is a folder")
    refused(Path("ViT-Q_16"), "is no run directory, file or published checkpoint", "did you mean")


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
def test_a_truncated_file(keep, tmp_path):
    data = (GOLDEN / "vit_token.npz").read_bytes()
    (tmp_path / "w.npz").write_bytes(data[: int(len(data) * keep)])
    refused(tmp_path / "w.npz", "cut short or damaged", "get the file again")


def test_an_empty_file_a_web_page_a_pickle_and_a_npy(tmp_path):
    path = tmp_path / "w.npz"
    for data, says in (
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>", "is a web page"),
        (b"<html>", "is a web page"),
        (pickle.dumps({"head/kernel": 1}), "is not an npz file"),
        (npy(np.zeros(3)), "is not an npz file"),
    ):
        path.write_bytes(data)
        refused(path, says)


def test_a_flipped_bit(tmp_path):
    data = bytearray((GOLDEN / "vit_token.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "w.npz").write_bytes(data)
    refused(tmp_path / "w.npz", "cut short or damaged", "CRC")


def test_a_wrong_family(tmp_path):
    np.savez(
        tmp_path / "w.npz", **{"conv1.weight": np.zeros(3, np.float32), "fc.bias": np.zeros(2, np.float32)}
    )
    refused(tmp_path / "w.npz", "has no patch embedding", "conv1.weight", "ViT, hybrid or Mixer")
    np.savez(tmp_path / "w.npz", **{"embedding/kernel": np.zeros((8, 8, 3, 48), np.float32)})
    refused(tmp_path / "w.npz", "no model without block_0/mlp/up/kernel, block_0/attention/query/kernel")


def test_missing_extra_and_misshapen_arrays_are_all_listed_at_once(arrays, tmp_path):
    block = [name for name in arrays if "encoderblock_0/LayerNorm" in name]
    for name in block:
        del arrays[name]
    arrays["head/bias"] = np.zeros(11, np.float32)
    arrays["Transformer/encoder_norm/scale"] = np.zeros((48, 2), np.float32)
    arrays["foo/kernel"] = arrays["bar"] = np.zeros(2, np.float32)
    np.savez(tmp_path / "w.npz", **arrays)
    refused(
        tmp_path / "w.npz",
        "4 missing: block_0/norm1/bias, block_0/norm1/scale, block_0/norm2/bias, block_0/norm2/scale",
        "2 unexplained: foo/kernel, bar",
        "2 misshapen: ",
        "head/bias is (11,), not (10,)",
        "norm/scale is (48, 2), not (48,)",
        "nothing was loaded",
    )


def test_a_missing_block(arrays, tmp_path):
    np.savez(tmp_path / "w.npz", **{k: v for k, v in arrays.items() if "encoderblock_0/" not in k})
    refused(tmp_path / "w.npz", "no model without block_0")
    third = {k.replace("encoderblock_1", "encoderblock_2"): v for k, v in arrays.items()}
    np.savez(tmp_path / "w.npz", **third)
    refused(tmp_path / "w.npz", "16 missing: block_1/attention/key/bias")


def test_numbers_that_are_no_floats(arrays, tmp_path):
    np.savez(tmp_path / "w.npz", **arrays | {"head/bias": np.zeros(10, np.int32)})
    refused(tmp_path / "w.npz", "1 not floating point: head/bias is int32")


class Bomb:
    def __reduce__(self):
        return (Path.write_text, (Path("pwned"), "!"))


def test_pickled_arrays_are_refused_and_never_unpickled(arrays, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("w.npz", **arrays | {"head/bias": np.array([Bomb()], dtype=object)})
    refused(tmp_path / "w.npz", "head/bias holds pickled objects", "not unpickled")
    assert not (tmp_path / "pwned").exists()


def test_a_zip_bomb_is_refused_before_anything_is_read(arrays, tmp_path):
    members = {f"{k}.npy": npy(v) for k, v in arrays.items()}
    zeros = np.zeros(2**27, np.uint8)  # 128 MiB of zeros are 128 KiB in the file
    shape = {"shape": (1, len(zeros) // 4), "descr": "<f4"}
    bomb = {f"bomb{i}.npy": npy(zeros, **shape) for i in range(4)}
    tracemalloc.start()
    try:
        path = put(tmp_path / "w.npz", members | bomb)
        del bomb, zeros
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        refused(path, "declares 537,0", "which no model has", "nothing was read")
        assert tracemalloc.get_traced_memory()[1] - before < 2**26
    finally:
        tracemalloc.stop()


def test_declared_and_real_sizes_must_agree(arrays, tmp_path):
    members = {f"{k}.npy": npy(v) for k, v in arrays.items()}
    for shape in ((10**12,), (11,), (-10,), (2**62, 2**62)):
        members["head/bias.npy"] = npy(arrays["head/bias"], shape=shape)
        put(tmp_path / "w.npz", members)
        refused(tmp_path / "w.npz", "head/bias")
    members["head/bias.npy"] = b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 118
    put(tmp_path / "w.npz", members)
    refused(tmp_path / "w.npz", "head/bias has no header that numpy could read")


def test_an_absurd_depth_costs_nothing(arrays, tmp_path):
    arrays["Transformer/encoderblock_999999999999/LayerNorm_0/bias"] = np.zeros(48, np.float32)
    np.savez(tmp_path / "w.npz", **arrays)
    refused(tmp_path / "w.npz", "are no model's: the file is broken or hostile")


def test_a_member_that_is_no_array_and_one_twice(arrays, tmp_path):
    put(tmp_path / "w.npz", {"readme.txt": b"hello"})
    refused(tmp_path / "w.npz", "'readme.txt' is not one array of an npz")
    shutil.copy(GOLDEN / "vit_token.npz", tmp_path / "w.npz")
    with zipfile.ZipFile(tmp_path / "w.npz", "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("head/bias.npy", npy(arrays["head/bias"]))
    refused(tmp_path / "w.npz", "'head/bias.npy' is not one array of an npz")
