"""Files of training code: prefixes, copies of a model, several files, other dtypes."""

import json

import numpy as np
import pytest
from torch_reference import case
from weight_files import arrays, assert_same

from vit_jax.errors import UserError
from vit_jax.weights.adapt import Wish
from vit_jax.weights.formats import safetensors
from vit_jax.weights.load import read
from vit_jax.weights.save import flatten, write


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Arrays of a ViT in the names of timm, and its parameters."""
    model, params, _ = case("timm_vit")
    path = tmp_path_factory.mktemp("plain") / "w.npz"
    write(path, params, model, dialect="timm")
    return arrays(path), flatten(params)


def put(path, tree):
    safetensors.write(
        path, {n: np.asarray(a, np.float32) for n, a in tree.items()}, image_hw=(32, 32), heads=2
    )
    return path


def under(prefix, tree):
    return {prefix + name: array for name, array in tree.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        *(
            "module.",
            "_orig_mod.",
            "model.",
            "backbone.",
            "visual.",
            "student.",
            "teacher.",
            "net.",
            "trunk.",
        ),
        *("state_dict_ema.", "model_ema.module.", "module._orig_mod.", "teacher.backbone.", "timm_model."),
    ],
)
def test_a_prefix_is_taken_off_and_the_report_says_so(plain, prefix, tmp_path):
    tree, params = plain
    weights = read(put(tmp_path / "w.safetensors", under(prefix, tree)))
    assert_same(flatten(weights.params), params)
    assert f"the prefix {prefix} taken off" in str(weights.report)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_a_prefix_around_another_librarys_own_is_taken_off_its_head_too(prefix, tmp_path):
    model, params, _ = case("hf_vit")
    write(tmp_path / "w.npz", params, model, dialect="huggingface", numerics="theirs")
    tree = under(prefix, arrays(tmp_path / "w.npz"))
    assert f"{prefix}vit.layernorm.weight" in tree
    assert f"{prefix}classifier.weight" in tree
    weights = read(put(tmp_path / "w.safetensors", tree))
    assert_same(flatten(weights.params), flatten(params))


@pytest.mark.parametrize(
    ("other", "meant"), [("student.", "teacher."), ("model.", "model_ema."), ("model_ema.", "")]
)
def test_of_two_copies_the_averaged_one_is_meant_unless_named(plain, other, meant, tmp_path):
    tree, params = plain
    both = under(other, {n: a + 1 for n, a in tree.items()}) | under(meant, tree)
    path = put(tmp_path / "w.safetensors", both)
    weights = read(path)
    assert_same(flatten(weights.params), params)
    assert f"another copy of the model than {meant or 'the one without'}" in str(weights.report)
    named = flatten(read(f"{path}:{other.removesuffix('.')}").params)
    np.testing.assert_array_equal(named["norm/scale"], params["norm/scale"] + 1)


def test_of_two_copies_without_an_average_neither_is_chosen_in_silence(plain, tmp_path):
    tree, _ = plain
    with pytest.raises(UserError, match="unexplained: other"):
        read(put(tmp_path / "w.safetensors", under("model.", tree) | under("other.", tree)))


def test_what_lies_beside_a_model_is_ignored_with_the_reason_or_refused(plain, tmp_path):
    tree, params = plain
    beside = {
        "optimizer.state.0.exp_avg": "the state of an optimizer",
        "epoch": "a counter of training",
        "model.dino_head.mlp.0.weight": "a head of self-supervised pretraining",
    }
    whole = under("model.", tree) | {name: np.zeros(1, np.float32) for name in beside}
    weights = read(put(tmp_path / "w.safetensors", whole))
    assert_same(flatten(weights.params), params)
    assert all(f"ignored {name}: {why}" in str(weights.report) for name, why in beside.items())
    with pytest.raises(UserError, match=r"1 unexplained: decoder\.weight"):
        read(put(tmp_path / "w.safetensors", whole | {"decoder.weight": np.zeros(1, np.float32)}))
    with pytest.raises(UserError, match=r"arrays of the same name with and without model\.: keep one model"):
        read(put(tmp_path / "w.safetensors", whole | {"norm.weight": np.zeros(1, np.float32)}))


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16"])
def test_other_dtypes_become_float32(plain, dtype, tmp_path):
    tree, params = plain
    kind = np.dtype(safetensors.DTYPES[dtype])
    path, header, offset = tmp_path / "w.safetensors", {}, 0
    stored = {name: array.astype(kind) for name, array in tree.items()}
    for name, array in stored.items():
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in stored.values()))
    weights = read(path, Wish(heads=2))
    np.testing.assert_array_equal(weights.params["norm"]["scale"], stored["norm.weight"].astype(np.float32))
    assert f"{'bfloat16' if dtype == 'BF16' else kind} to float32" in str(weights.report)
    assert flatten(weights.params).keys() == params.keys()


@pytest.fixture
def sharded(plain, tmp_path):
    """A model in three files with an index, and the function that writes the index with other entries."""
    tree = plain[0]
    where = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(sorted(tree))}
    for file in set(where.values()):
        put(tmp_path / file, {name: array for name, array in tree.items() if where[name] == file})

    def index(changed):
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where | changed}))
        return path

    return index


def test_several_files_are_read_as_one_from_their_index_or_their_folder(plain, sharded, tmp_path):
    path = sharded({})
    assert_same(flatten(read(path, Wish(heads=2)).params), plain[1])
    told = {"architecture": "vit_tiny", "model_args": {"num_heads": 2}, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert_same(flatten(read(tmp_path).params), plain[1])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"more": "model-00001-of-00003.safetensors"}, "do not agree where more lies"),
        ({"norm.weight": "model-00001-of-00003.safetensors"}, "do not agree where norm.weight lies"),
        ({"norm.weight": "model-9.safetensors"}, "model-9.safetensors cannot be read"),
        ({"norm.weight": "../w.safetensors"}, "is no index of safetensors files"),
        ({"norm.weight": 3}, "is no index of safetensors files"),
    ],
)  # fmt: skip
def test_an_index_that_does_not_fit_its_files_is_refused_in_one_line(sharded, changed, told):
    with pytest.raises(UserError, match=told) as error:
        read(sharded(changed))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', "[" * 10_000])
def test_a_broken_index_is_refused_in_one_line(text, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(UserError, match="is no index of safetensors files"):
        read(path)
