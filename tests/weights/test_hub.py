"""Models by their names on the Hugging Face Hub, which here is a server on this machine."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch_reference
from hub_server import COMMITS, Hub, serve
from torch_reference import CASES, SIZES
from weight_files import assert_same

from vit_jax import extras
from vit_jax.errors import UserError
from vit_jax.weights.formats import safetensors
from vit_jax.weights.load import describe, read
from vit_jax.weights.save import flatten, write

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("huggingface_hub.constants")
JSON = {"config.json", "preprocessor_config.json"}


def put(root: Path, name: str, case: str, revision: str = "main") -> Path:
    """A repository of a model of the reference cases, in the form of its library."""
    model, params, _ = torch_reference.case(case)
    folder = root / name / revision
    folder.mkdir(parents=True)
    if CASES[case][0] == "huggingface":
        write(folder, params, model, dialect="huggingface")
    else:
        write(folder / "model.safetensors", params, model, dialect="timm")
        told = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9}
        tree = {"architecture": "vit_tiny_patch16_224", "num_classes": 11, "num_features": SIZES["width"]}
        tree |= {"model_args": {"num_heads": 2}, "pretrained_cfg": told}
        (folder / "config.json").write_text(json.dumps(tree))
    (folder / "README.md").write_text("not read")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    put(root, "google/vit", "hf_vit")
    put(root, "google/vit", "hf_vit_tanh", "v2")
    put(root, "facebook/dinov3", "hf_dinov3")
    put(root, "timm/vit_tiny_patch16_224.augreg_in21k", "timm_vit")
    return root


@pytest.fixture
def hub(root, tmp_path, monkeypatch) -> Iterator[Hub]:
    server, hub = serve(root)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    yield hub
    server.shutdown()
    server.server_close()


def refused(ref: str, *told: str) -> None:
    with pytest.raises(UserError) as error:
        read(ref)
    assert "\n" not in str(error.value)
    for words in told:
        assert words in str(error.value)


def files(hub: Hub) -> set[str]:
    return {asked.rpartition("/")[2] for asked in hub.asked if "GET" in asked and "/resolve/" in asked}


@pytest.mark.parametrize(
    ("ref", "case"),
    [
        ("google/vit", "hf_vit"),
        ("google/vit@v2", "hf_vit_tanh"),
        (f"google/vit@{COMMITS['v2']}", "hf_vit_tanh"),
        ("facebook/dinov3", "hf_dinov3"),
        ("timm/vit_tiny_patch16_224.augreg_in21k", "timm_vit"),
    ],
)
def test_a_name_of_the_hub_is_read_and_only_what_is_needed_is_downloaded(hub, ref, case):
    weights = read(ref)
    model, params, _ = torch_reference.case(case)
    assert weights.report.source == ref
    assert (weights.model.gelu, weights.model.image_hw) == (model.gelu, (32, 32))
    assert_same(flatten(weights.params), flatten(params))
    wanted = {"config.json"} if case.startswith("timm") else JSON
    assert files(hub) == {*wanted, "model.safetensors"}
    first = len(hub.asked)
    assert_same(flatten(read(ref).params), flatten(params))
    assert not [asked for asked in hub.asked[first:] if asked.startswith("GET")]  # all is in the cache
    assert describe(ref)[0].width == SIZES["width"]


def test_what_is_on_this_machine_goes_first(hub, root, tmp_path):
    put(tmp_path, "google/vit", "hf_vit_tanh", ".")
    assert read("google/vit").model.gelu == "tanh"
    assert not hub.asked


def test_weights_in_several_files_are_read_from_their_index(hub, root):
    folder = put(root, "google/sharded", "hf_vit")
    whole = safetensors.Archive(folder / "model.safetensors")
    names = sorted(whole.entries)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        arrays = {name: whole.read(name) for name in part}
        safetensors.write(folder / file, arrays, image_hw=(32, 32))
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert_same(flatten(read("google/sharded").params), flatten(torch_reference.case("hf_vit")[1]))
    assert files(hub) == {*JSON, *parts, "model.safetensors.index.json"}
    (folder / "model-00002-of-00002.safetensors").rename(folder / "gone")
    (folder.parent / "main").rename(folder.parent / "v2")
    refused("google/sharded@v2", "but no model-00002-of-00002.safetensors, which it needs")


def test_a_repository_of_open_clip_is_read(hub, root):
    folder = put(root, "laion/clip", "hf_clip_projection")
    model, params, _ = torch_reference.case("hf_clip_projection")
    write(folder / "open_clip_model.safetensors", params, model, dialect="clip")
    vision = {"image_size": 32, "layers": 2, "width": 128, "head_width": 64, "patch_size": 8}
    told = {"model_cfg": {"embed_dim": 48, "quick_gelu": True, "vision_cfg": vision, "text_cfg": {}}}
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    (folder / "model.safetensors").unlink()  # what transformers would read goes first
    weights = read("laion/clip")
    assert (weights.model.gelu, weights.model.heads) == ("quick", 2)
    assert_same(flatten(weights.params), flatten(params))
    assert "open_clip_model.safetensors" in files(hub)


def test_without_the_hub_the_cache_is_read_and_what_is_not_in_it_is_named(hub, monkeypatch):
    ref = "google/vit"
    params = flatten(read(ref).params)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert_same(flatten(read(ref).params), params)
    refused(
        "facebook/dinov3", "facebook/dinov3 is no run directory", "config.json of facebook/dinov3 is not in"
    )
    refused("google/vit@v2", "is not in the cache, nor can the Hub be asked (")
    snapshot = Path(
        huggingface_hub.constants.HF_HUB_CACHE, "models--google--vit", "snapshots", COMMITS["main"]
    )
    (snapshot / "preprocessor_config.json").unlink()  # which is not taken for one that the Hub has not
    refused(ref, "preprocessor_config.json of google/vit is not in the cache")


def test_what_the_hub_refuses_is_told_in_one_line(hub, root):
    refused(
        "google/nothing",
        "google/nothing is no run directory, file or published checkpoint, and the Hub has none",
    )
    refused("google/vit@v9", "google/vit on the Hub has no revision v9")
    hub.gated.add("facebook/dinov3")
    refused("facebook/dinov3", f"is gated: agree to its terms at {hub.url}/facebook/dinov3", "HF_TOKEN")
    refused("google/a..b", "it is no name of the Hub either")
    folder = put(root, "google/pickled", "hf_vit")
    (folder / "model.safetensors").unlink()
    refused("google/pickled", "has only a torch pickle, which can run code", "safetensors.torch.save_file")
    (folder / "pytorch_model.bin").unlink()
    refused("google/pickled", "google/pickled on the Hub has no model.safetensors")
    (folder / "config.json").unlink()
    refused("google/pickled", "has neither config.json nor open_clip_config.json")


def test_a_token_opens_a_gated_repository(hub, monkeypatch):
    hub.gated.add("facebook/dinov3")
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    assert read("facebook/dinov3").model.rotary == "dinov3"


def test_a_connection_that_is_not_there_is_told_in_one_line(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its tries
    nowhere = "http://127.0.0.1:9"  # the port of `discard`, where nothing answers
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        nowhere + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
    refused("google/vit", "google/vit is no run directory", "nor can the Hub be asked (", "refused")


def test_a_missing_extra_is_told_beside_what_is_not_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    real = extras.importlib.import_module

    def without(name: str) -> object:
        if name == "huggingface_hub":
            raise ModuleNotFoundError(name)
        return real(name)

    monkeypatch.setattr(extras.importlib, "import_module", without)
    refused(
        "runs/pets",
        "runs/pets is no run directory",
        "the Hugging Face Hub it needs huggingface_hub: pip install",
    )
    (tmp_path / "runs").mkdir()
    refused(
        "runs/pets", "runs is a folder here, so the Hugging Face Hub is not asked unless for runs/pets@main"
    )
    refused("augreg/B_61", "did you mean augreg/B_16")  # published names are none of the Hub


def test_a_command_takes_a_name_of_the_hub(hub, tmp_path):
    there = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": str(tmp_path / "other"),
        "JAX_PLATFORMS": "cpu",
    }
    ref = "timm/vit_tiny_patch16_224.augreg_in21k"
    command = [sys.executable, "-m", "vit_jax.cli.info", ref, "--json"]
    told = subprocess.run(command, env=os.environ | there, capture_output=True, text=True, check=True)
    facts = json.loads(told.stdout)
    assert (facts["source"], facts["model"]["depth"]) == (ref, SIZES["depth"])
    np.testing.assert_allclose(facts["preprocess"]["crop_fraction"], 0.9)
