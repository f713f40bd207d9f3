"""Resizes are whose they say they are; transforms are pure functions of an image and a generator."""

import functools
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from vit_jax.data import augment, transforms
from vit_jax.data.decode import Encoded
from vit_jax.data.resize import resize, resize_box
from vit_jax.errors import UserError
from vit_jax.sections import Data, Preprocess

PILLOW = {"pil_bilinear": Image.Resampling.BILINEAR, "pil_bicubic": Image.Resampling.BICUBIC}
FILTERS = (*PILLOW, "tf_bilinear")


@functools.cache
def photo(width: int = 500, height: int = 375) -> Image.Image:
    """A real photograph: SIMD and Pillow differ most at its edges and textures."""
    return Image.fromarray(load_sample_images().images[0]).resize((width, height), Image.Resampling.LANCZOS)


def jpeg(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


@pytest.mark.parametrize("filter", PILLOW)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_exact_resizes_are_pillows_to_the_bit(filter: str, mode: str) -> None:
    image = photo().convert(mode)
    for size_hw in ((224, 224), (97, 301), (600, 700)):
        ours = resize(np.asarray(image).reshape(375, 500, -1), size_hw, filter=filter, exact=True)
        theirs = np.asarray(image.resize(size_hw[::-1], PILLOW[filter])).reshape(*size_hw, -1)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("filter", PILLOW)
def test_many_channels_are_resized_one_by_one(filter: str) -> None:
    image_hwc = np.random.default_rng(0).integers(256, size=(40, 50, 5), dtype=np.uint8)
    for exact in (True, False):
        whole = resize(image_hwc, (20, 30), filter=filter, exact=exact)
        planes = [resize(image_hwc[..., i : i + 1], (20, 30), filter=filter, exact=exact) for i in range(5)]
        np.testing.assert_array_equal(whole, np.concatenate(planes, axis=-1))


@pytest.mark.parametrize("filter", PILLOW)
@pytest.mark.parametrize("size_hw", [(224, 224), (160, 320), (600, 700)])
def test_close_resizes_differ_by_a_fifth_of_a_grey_level(filter: str, size_hw: tuple[int, int]) -> None:
    image_hwc = np.asarray(photo())
    ours, theirs = (resize(image_hwc, size_hw, filter=filter, exact=e).astype(int) for e in (False, True))
    # Both round to 8 bits between two passes, with weights of 8 and 22 bits: 0.11 to 0.17 measured.
    assert np.abs(ours - theirs).mean() < 0.2


@pytest.mark.parametrize("filter", PILLOW)
def test_a_box_is_the_part_of_the_whole_resized(filter: str) -> None:
    image_hwc = np.asarray(photo())
    whole = resize(image_hwc, (256, 320), filter=filter, exact=False).astype(int)
    y, x = 375 / 256, 500 / 320
    part = resize_box(image_hwc, (40 * x, 16 * y, 264 * x, 240 * y), (224, 224), filter=filter)
    # The same filter at the same places; positions are rounded differently, so some roundings flip.
    assert np.abs(part - whole[16:240, 40:264]).max() <= 1


def test_tf_bilinear_is_linear_between_pixel_centres_without_antialiasing() -> None:
    image_hwc = np.array([[0, 100], [200, 40]], np.uint8)[..., None]
    up = resize(image_hwc, (4, 4), filter="tf_bilinear", exact=True)[..., 0]
    np.testing.assert_array_equal(up[0], [0, 25, 75, 100])
    np.testing.assert_array_equal(up[1], [50, 59, 76, 85])  # 58.75 and 76.25 rounded
    stripes = np.tile(np.array([[0], [255], [255], [0]], np.uint8)[..., None], (2, 8, 1))
    down = resize(stripes, (4, 4), filter="tf_bilinear", exact=True)
    assert set(np.unique(down)) == {128}  # each lies half-way between two rows: nothing else is averaged in


@pytest.mark.parity
@pytest.mark.parametrize("size_hw", [(224, 224), (160, 320), (600, 700)])
def test_tf_bilinear_is_tensorflows_to_the_bit(size_hw: tuple[int, int]) -> None:
    tf = pytest.importorskip("tensorflow")
    image_hwc = np.asarray(photo())
    theirs = np.rint(tf.image.resize(image_hwc, size_hw).numpy()).astype(np.uint8)
    np.testing.assert_array_equal(resize(image_hwc, size_hw, filter="tf_bilinear", exact=True), theirs)


@pytest.mark.parametrize("resize_mode", ["squash", "crop", "squash_crop"])
@pytest.mark.parametrize("filter", FILTERS)
def test_exact_evaluation_is_pillows_resize_and_centre_crop(filter: str, resize_mode: str) -> None:
    data = jpeg(photo())
    cfg = Preprocess(resize=resize_mode, filter=filter, resizer="exact")
    ours = transforms.for_evaluation(Encoded(data, "photo"), cfg, (224, 224))
    size_hw = {"squash": (224, 224), "crop": (256, 341), "squash_crop": (256, 256)}[resize_mode]
    image = Image.open(io.BytesIO(data))
    theirs = resize(np.asarray(image), size_hw, filter=filter, exact=True)
    top, left = (size_hw[0] - 224) // 2, (size_hw[1] - 224) // 2
    np.testing.assert_array_equal(ours, theirs[top : top + 224, left : left + 224])


# Mean grey levels to `exact`. Close: rounding, 0.11 to 0.26 measured. Fast: coarse colours, bilinear,
# 2 on average and 3.4 at most, about as far as JPEG at quality 90 is from the photograph.
@pytest.mark.parametrize(("resizer", "bound"), [("close", 0.3), ("fast", 4.0)])
@pytest.mark.parametrize("size", [(500, 375), (1600, 1200)])
def test_training_crops_stay_near_pillows(resizer: str, bound: float, size: tuple[int, int]) -> None:
    picture = Encoded(jpeg(photo(*size)), "photo")
    cfgs = [Data(filter="pil_bicubic", resizer=r, min_area=0.08) for r in (resizer, "exact")]
    for seed in range(12):
        ours, theirs = (
            transforms.inception_crop(picture, cfg, (224, 224), np.random.default_rng(seed)).astype(int)
            for cfg in cfgs
        )
        assert np.abs(ours - theirs).mean() < bound


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (1600, 1200)])
def test_close_evaluation_stays_near_pillows(size: tuple[int, int]) -> None:
    picture = Encoded(jpeg(photo(*size)), "photo")
    images = [
        transforms.for_evaluation(
            picture, Preprocess(resize="crop", filter="pil_bicubic", resizer=r), (224, 224)
        )
        for r in ("close", "exact")
    ]
    assert np.abs(images[0].astype(int) - images[1]).mean() < 0.3


def test_predictions_on_pillow_images_are_those_on_files() -> None:
    data = jpeg(photo())
    for resizer in ("exact", "close"):
        cfg = Preprocess(resize="crop", filter="pil_bicubic", resizer=resizer)
        pair = [
            transforms.for_evaluation(p, cfg, (224, 224))
            for p in (Encoded(data, ""), Image.open(io.BytesIO(data)))
        ]
        np.testing.assert_array_equal(*pair)


@pytest.mark.parametrize("resize_mode", ["crop", "squash_crop"])
@pytest.mark.parametrize("resizer", ["exact", "close"])
def test_a_window_is_any_part_of_what_evaluation_takes_the_centre_of(resize_mode: str, resizer: str) -> None:
    cfg = Data(augment="window", flip=False, resize=resize_mode, crop_fraction=0.5, resizer=resizer)
    image_hwc = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)  # of the size before the crop
    parts = {image_hwc[i : i + 4, j : j + 4].tobytes() for i in range(5) for j in range(5)}
    draw = lambda seed: transforms.for_training(image_hwc, cfg, (4, 4), np.random.default_rng(seed)).tobytes()
    assert {
        draw(seed) for seed in range(300)
    } == parts  # one is missing with a chance of 25 (24/25)^300: 1e-4
    assert transforms.for_evaluation(image_hwc, cfg, (4, 4)).tobytes() == image_hwc[2:6, 2:6].tobytes()


def test_a_window_without_a_choice_is_refused() -> None:
    with pytest.raises(UserError, match=r"set data\.resize=crop"):
        Data(augment="window")


@given(h=st.integers(1, 9), w=st.integers(1, 9), pad_px=st.integers(0, 12), seed=st.integers(0, 2**32))
def test_a_shift_is_a_random_crop_of_the_padded_image(h: int, w: int, pad_px: int, seed: int) -> None:
    image_hwc = np.random.default_rng(0).integers(1, 256, size=(h, w, 2), dtype=np.uint8)
    top, left = np.random.default_rng(seed).integers(2 * pad_px + 1, size=2)
    padded = np.pad(image_hwc, ((pad_px, pad_px), (pad_px, pad_px), (0, 0)))
    out = augment.shift(image_hwc, np.random.default_rng(seed), pad_px=pad_px)
    np.testing.assert_array_equal(out, padded[top : top + h, left : left + w])


AUGMENTED = (
    Data(policy="randaug", randaug_layers=3, randaug_magnitude=9),
    Data(policy="three", jitter=0.3),
    Data(erase=1.0, augment="pad"),
    Data(channels=1, policy="randaug", jitter=0.4, erase=0.5),
    Data(channels=1, policy="three", augment="none"),
    Data(channels=6, erase=1.0, mean=(0.5,) * 6, std=(0.2,) * 6),
)


@settings(max_examples=60, deadline=None)
@given(cfg=st.sampled_from(AUGMENTED), seed=st.integers(0, 2**32), h=st.integers(2, 40), w=st.integers(2, 40))
def test_augmentation_keeps_shape_and_type_and_depends_only_on_its_generator(
    cfg: Data, seed: int, h: int, w: int
) -> None:
    image_hwc = np.random.default_rng(1).integers(256, size=(h, w, cfg.channels), dtype=np.uint8)
    before = image_hwc.copy()
    image_hwc.flags.writeable = False
    pair = [transforms.for_training(image_hwc, cfg, (16, 12), np.random.default_rng(seed)) for _ in range(2)]
    assert pair[0].shape == (16, 12, cfg.channels)
    assert pair[0].dtype == np.uint8
    np.testing.assert_array_equal(*pair)
    np.testing.assert_array_equal(image_hwc, before)


@pytest.mark.parametrize("index", range(len(augment.RANDAUG_OPERATIONS)))
def test_every_randaug_operation_changes_a_photograph(index: int) -> None:
    image = photo(64, 48)
    out = augment.RANDAUG_OPERATIONS[index](image, 0.7, np.random.default_rng(0))
    assert out.size == image.size
    assert np.abs(np.asarray(out).astype(int) - np.asarray(image)).mean() > 0.5


@pytest.mark.parametrize("magnitude", [0, 1, 2, 3, 10, 20, 30])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_randaug_operations_take_every_magnitude(magnitude: int, mode: str) -> None:
    image = photo(64, 48).convert(mode)
    for operation in augment.RANDAUG_OPERATIONS:
        out = operation(image, magnitude / augment.MAX_MAGNITUDE, np.random.default_rng(0))
        assert (out.size, out.mode) == (image.size, mode)


@pytest.mark.parametrize(
    ("magnitude", "bits"), [(0, 1), (1, 1), (2, 1), (3, 1), (5, 2), (10, 4), (15, 6), (20, 8), (30, 8)]
)
def test_posterize_keeps_the_bits_that_big_vision_keeps(magnitude: int, bits: int) -> None:
    """Its `image >> (8 - b) << (8 - b)` with b = int(magnitude / 10 * 4); TensorFlow shifts by 0 to 7."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    level = magnitude / augment.MAX_MAGNITUDE
    out = augment._posterize(Image.fromarray(grey), level, np.random.default_rng(0))
    shift = np.clip(8 - int(level * 4), 0, 7)
    np.testing.assert_array_equal(np.asarray(out), grey >> shift << shift)
    assert len(np.unique(out)) == 2**bits


def test_three_augment_draws_grey_solarize_and_blur() -> None:
    image_hwc = np.asarray(photo(64, 48))
    outs = [augment.three_augment(image_hwc, np.random.default_rng(seed)) for seed in range(30)]
    grey = [(o == o[..., :1]).all() for o in outs]
    solarized = [((o == image_hwc) | (o == 255 - image_hwc)).all() for o in outs]
    assert 3 < sum(grey) < 20
    assert 3 < sum(solarized) < 20
    assert sum(grey) + sum(solarized) < 27


def test_erasing_draws_noise_around_the_mean_in_a_part_of_the_image() -> None:
    image_hwc = np.zeros((100, 100, 3), np.uint8)
    mean, std = (0.2, 0.5, 0.8), (0.05, 0.05, 0.05)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        out = augment.erase(image_hwc, rng, rate=1.0, mean=mean, std=std)
        erased = out.any(axis=-1)
        assert 0.015 < erased.mean() < 0.35
        np.testing.assert_allclose(out[erased].mean(axis=0) / 255, mean, atol=0.01)  # of 150 or more draws


@given(w=st.integers(1, 300), h=st.integers(1, 300), seed=st.integers(0, 2**32), area=st.floats(0.05, 1))
def test_inception_boxes_lie_in_the_image(w: int, h: int, seed: int, area: float) -> None:
    left, top, right, bottom = transforms.inception_box((w, h), area, np.random.default_rng(seed))
    assert 0 <= left < right <= w
    assert 0 <= top < bottom <= h


def test_a_thin_image_becomes_a_square() -> None:
    for size in ((1, 400), (400, 1)):
        image_hwc = np.asarray(photo(*size))
        for cfg in (Data(resize="crop"), Data(resize="crop", resizer="exact", filter="tf_bilinear")):
            assert transforms.for_evaluation(image_hwc, cfg, (32, 32)).shape == (32, 32, 3)
            assert transforms.for_training(image_hwc, cfg, (32, 32), np.random.default_rng(0)).shape == (
                32,
                32,
                3,
            )
