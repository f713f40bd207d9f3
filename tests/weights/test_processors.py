"""Every key that image processors of transformers 5 have is obeyed, or refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch_reference import stub_torchvision

from vit_jax.data import transforms
from vit_jax.errors import UserError
from vit_jax.weights.formats import processors

PATH = Path("preprocessor_config.json")
PIXELS = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
HALF, IMAGENET = ([0.5] * 3, [0.5] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def square(resample: int, statistics: tuple[list[float], list[float]]) -> dict[str, Any]:
    size = {"size": {"height": 24, "width": 24}, "resample": resample}
    return PIXELS | size | {"image_mean": statistics[0], "image_std": statistics[1]}


EDGE = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 24, "width": 24}}
EDGE |= PIXELS | {"resample": 3, "image_mean": CLIP[0], "image_std": CLIP[1], "do_convert_rgb": True}
# What each writes, at small sizes.
WRITTEN = {
    "ViT": square(2, HALF),
    "Siglip": square(3, HALF) | {"do_convert_rgb": True},
    "Beit": square(3, HALF) | {"do_reduce_labels": False},
    "DINOv3ViT": square(2, IMAGENET),
    "CLIP": EDGE,
    "Bit": EDGE,
    "DeiT": square(3, HALF)
    | {"size": {"height": 32, "width": 32}}
    | {"do_center_crop": True, "crop_size": 24},
}
# Another value of each key, where need be with others beside which it has a meaning.
OTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "do_resize": (False, {}),
    "size": ({"height": 48, "width": 48}, {}),
    "default_to_square": (None, {"size": 32, "do_center_crop": True, "crop_size": 24}),
    "do_center_crop": (None, {"size": {"height": 32, "width": 32}, "crop_size": 24}),
    "crop_size": ({"height": 16, "width": 16}, {"do_center_crop": True, "crop_size": 24}),
    "resample": (None, {}),
    "do_rescale": (False, {}),
    "rescale_factor": (1 / 127.5, {}),
    "do_normalize": (False, {}),
    "image_mean": ([0.1, 0.2, 0.3], {}),
    "image_std": ([0.1, 0.2, 0.3], {}),
    "do_pad": (True, {}),
    "pad_size": ({"height": 48, "width": 48}, {}),
    "image_seq_length": (4, {}),
    "do_reduce_labels": (True, {}),
}
# Keys that change no pixel: how arrays are handed over, where they lie, who made the file. Without
# `do_convert_rgb` the processors refuse other images than RGB, and of RGB they make the same.
NO_PIXELS = {"data_format", "input_data_format", "return_tensors", "device", "disable_grouping"}
NO_PIXELS |= {"do_convert_rgb", "image_processor_type", "processor_class"}


def told(kind: str, **changes: Any) -> Any:
    return processors.read({"image_processor_type": f"{kind}ImageProcessor"} | WRITTEN[kind] | changes, PATH)


@pytest.mark.parametrize("key", OTHER)
@pytest.mark.parametrize("kind", WRITTEN)
def test_another_value_of_a_key_is_seen_or_refused_by_name(kind, key):
    value, beside = OTHER[key]
    base = (
        {"do_center_crop": False, "default_to_square": kind not in ("CLIP", "Bit")} | WRITTEN[kind] | beside
    )
    if value is None:  # a choice of two: the one that is not there
        value = {2: 3, 3: 2}[base[key]] if key == "resample" else not base[key]
    assert answer(kind, key, **beside | {key: value}) != told(kind, **beside)


def answer(kind: str, key: str, **changes: Any) -> Any:
    """What is told, or None where the key is refused by name on one line."""
    try:
        return told(kind, **changes)
    except UserError as error:
        return None if key in str(error) and "\n" not in str(error) else pytest.fail(str(error))


@pytest.mark.parametrize("key", sorted(NO_PIXELS - {"image_processor_type"}))
def test_keys_that_change_no_pixel_change_nothing(key):
    assert told("ViT", **{key: "channels_last"}) == told("ViT")


@pytest.mark.parametrize("size", [24, [24, 24], {"height": 24, "width": 24}])
def test_a_size_has_three_forms(size):
    assert told("ViT", size=size) == told("ViT")
    assert told("CLIP", crop_size=size) == told("CLIP")


def test_a_crop_of_no_size_is_refused():
    with pytest.raises(UserError, match="do_center_crop without crop_size is not done here"):
        told("ViT", do_center_crop=True)


@pytest.fixture
def transformers():
    pytest.importorskip("torch")
    stub_torchvision()
    return pytest.importorskip("transformers")


@pytest.mark.parity
def test_the_table_above_has_every_key_of_transformers(transformers):
    keys = set(transformers.processing_utils.ImagesKwargs.__annotations__)
    for kind in set(WRITTEN) - {"DINOv3ViT"}:  # which is not made without torchvision
        keys |= getattr(transformers, f"{kind}ImageProcessorPil")().to_dict().keys()
    assert keys <= OTHER.keys() | NO_PIXELS


@pytest.mark.parity
@pytest.mark.parametrize("kind", sorted(set(WRITTEN) - {"DINOv3ViT"}))
def test_pixels_are_those_of_transformers(transformers, kind):
    # Sides of which no multiple is rounded: transformers rounds the longer one down, here it is the nearest.
    noise = np.random.default_rng(0).normal(size=(66, 44, 3)).cumsum(0).cumsum(1)
    noise = (noise - noise.min()) / (noise.max() - noise.min()) * 255
    picture = Image.fromarray(noise.astype(np.uint8))
    real = getattr(transformers, f"{kind}ImageProcessorPil")(**WRITTEN[kind])
    wanted_hwc = real(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    preprocess, seen_hw = told(kind)
    assert seen_hw == (24, 24)
    uint8_hwc = np.asarray(transforms.for_evaluation(picture, preprocess, seen_hw))
    got_hwc = (uint8_hwc / 255 - np.array(preprocess.mean)) / np.array(preprocess.std)
    # Pillow's resize of the whole picture there, of the part that is seen here: one level of 255 may differ.
    np.testing.assert_allclose(got_hwc, wanted_hwc, rtol=0, atol=1.01 / 255 / min(preprocess.std))
