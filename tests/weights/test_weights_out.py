"""Files out: every round trip, the name tables and the table of published files."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import GOLDEN
from weight_files import arrays, assert_same, nest, random_params

from vit_jax.errors import UserError
from vit_jax.sections import MIXER_ONLY, Model, Preprocess
from vit_jax.weights import dialects, layout, published
from vit_jax.weights.dialects import official
from vit_jax.weights.load import read
from vit_jax.weights.save import flatten, write

OFFICIAL = ["vit_token", "vit_gap", "vit_prelogits", "hybrid_stem", "hybrid_resnet", "mixer"]
BIG_VISION = ["bigvision_tok", "bigvision_map", "bigvision_gap_sincos"]


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_file_is_written_as_it_was(name, tmp_path):
    weights = read(GOLDEN / f"{name}.npz")
    write(tmp_path / "w.npz", weights.params, weights.model, dialect="official")
    assert_same(arrays(tmp_path / "w.npz"), arrays(GOLDEN / f"{name}.npz"))


@pytest.mark.parametrize("name", BIG_VISION)
def test_a_big_vision_file_is_written_as_it_was(name, tmp_path):
    weights = read(GOLDEN / f"{name}.npz")
    write(tmp_path / "w.npz", weights.params, weights.model, dialect="big_vision")
    assert_same(arrays(tmp_path / "w.npz"), arrays(GOLDEN / f"{name}.npz"))


def hop(path: Path, to: Path, dialect: Any) -> dict[str, np.ndarray]:
    weights = read(path)
    write(to, weights.params, weights.model, dialect=dialect)
    return arrays(to)


@pytest.mark.parametrize("name", ["vit_token", "vit_gap", "vit_prelogits", "mixer"])
def test_official_to_big_vision_and_back_keeps_every_byte(name, tmp_path):
    hop(GOLDEN / f"{name}.npz", tmp_path / "b.npz", "big_vision")
    there, back = arrays(GOLDEN / f"{name}.npz"), hop(tmp_path / "b.npz", tmp_path / "a.npz", "official")
    if (
        "cls" in there
    ):  # big_vision has no slot for the class token: its position is added to the token itself
        position = "Transformer/posembed_input/pos_embedding"
        a, b = there.pop(position), back.pop(position)
        np.testing.assert_array_equal(a[:, 1:], b[:, 1:])
        np.testing.assert_array_equal(there.pop("cls") + a[:, :1], back.pop("cls") + b[:, :1])
    assert_same(back, there)


def test_big_vision_to_official_and_back_keeps_every_byte(tmp_path):
    hop(GOLDEN / "bigvision_tok.npz", tmp_path / "a.npz", "official")
    assert_same(
        hop(tmp_path / "a.npz", tmp_path / "b.npz", "big_vision"), arrays(GOLDEN / "bigvision_tok.npz")
    )


@st.composite
def models(draw: Any) -> Model:
    """Small models of every kind that the two dialects can hold."""
    patch, h, w = draw(st.sampled_from([1, 4])), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    sizes: dict[str, Any] = {
        "depth": draw(st.integers(1, 3)),
        "mlp_width": draw(st.integers(1, 9)),
        "classes": draw(st.integers(1, 9)),
        "patch_size": patch,
    }
    kind = draw(st.sampled_from(["vit", "hybrid", "mixer"]))
    if kind == "mixer":
        sizes |= MIXER_ONLY | {"family": "mixer", "token_width": draw(st.integers(1, 9)), "width": 6}
        return Model(**sizes, image_size=(h * patch, w * patch))
    sizes |= {"heads": draw(st.integers(1, 3)), "width": 12, "pre_logits": draw(st.sampled_from([0, 5]))}
    if kind == "hybrid":
        sizes |= {"stem_width": 32, "stem_blocks": draw(st.sampled_from([(), (1,), (1, 2)]))}
    token = draw(st.booleans())
    sizes |= {"class_token": token, "pooling": draw(st.sampled_from(["token" if token else "gap", "map"]))}
    if token:
        sizes["posemb_class_slot"] = draw(st.booleans())
    sizes["posemb"] = draw(st.sampled_from(["learned", "sincos2d", "none"]))
    stride = Model(**sizes, image_size=128).stride
    return Model(**sizes, image_size=(h * stride, w * stride))


@pytest.mark.long
@given(model=models(), seed=st.integers(0, 99), dialect=st.sampled_from(["official", "big_vision"]))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_random_model_survives_the_round_trip_or_is_refused(model, seed, dialect, tmp_path):
    params, path = random_params(model, seed), tmp_path / "w.npz"
    into = next(d for d in dialects.DIALECTS if d.name == dialect and d.holds(model))
    holds = all(into.theirs(name) for name in params) and (
        model.family == "mixer" or model.posemb in ("learned", into.absent_posemb)
    )
    if not holds:
        path.unlink(missing_ok=True)
        with pytest.raises(UserError, match=f"{dialect} files cannot"):
            write(path, nest(params), model, dialect=dialect)
        assert not path.exists()
        return
    write(path, nest(params), model, dialect=dialect)
    again = read(path)
    slot = model.posemb_class_slot
    if model.class_token and model.posemb == "learned":
        slot = again.model.posemb_class_slot
    kept = dataclasses.replace(again.model, image_size=model.image_size, posemb_class_slot=slot)
    assert kept == dataclasses.replace(model, posemb_class_slot=slot)
    assert again.model.image_hw == model.image_hw
    assert not again.report.resized
    packed = {name: a.reshape(layout.squeeze(name, a.shape)) for name, a in into.pack(params, model).items()}
    assert_same(flatten(again.params), packed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gelu": "exact"}, "model.gelu=exact (read as tanh)"),
        ({"norm_eps": 1e-5}, "model.norm_eps=1e-05 (read as 1e-06)"),
        ({"pooling": "gap"}, "model.pooling=gap (read as token)"),
        ({"registers": 2}, "cannot hold embed/registers"),
        ({"mlp": "swiglu"}, "block_0/mlp/gate/kernel"),
        ({"distill_token": True}, "head_distill/kernel"),
    ],
)
@pytest.mark.parametrize("dialect", ["official", "big_vision"])
def test_what_a_dialect_cannot_tell_is_refused(change, message, dialect, tmp_path):
    model = Model(image_size=32, patch_size=8, width=48, depth=1, heads=3, mlp_width=8, classes=2, **change)
    with pytest.raises(UserError, match=r"files cannot") as error:
        write(tmp_path / "w.npz", nest(random_params(model)), model, dialect=dialect)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_parameters_of_another_model_are_not_written(tmp_path):
    weights = read(GOLDEN / "vit_token.npz")
    other = dataclasses.replace(weights.model, classes=3)
    with pytest.raises(UserError, match=r"head/kernel is \(48, 10\), not \(48, 3\)"):
        write(tmp_path / "w.npz", weights.params, other, dialect="official")
    with pytest.raises(UserError, match="dialect='tim' cannot be written"):
        write(tmp_path / "w.npz", weights.params, weights.model, dialect="tim")
    with pytest.raises(UserError, match=r"cannot write .*No such file or directory.*choose a folder"):
        write(tmp_path / "no" / "w.npz", weights.params, weights.model, dialect="official")


def test_a_folder_of_transformers_is_refused_for_images_of_their_own_aspect(tmp_path):
    weights, native = read(GOLDEN / "vit_token.npz"), Preprocess(resize="native")
    with pytest.raises(UserError, match="cannot state images of their own aspect: write a"):
        write(tmp_path / "hf", weights.params, weights.model, dialect="huggingface", preprocess=native)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.npz"
    shutil.copy(GOLDEN / "vit_gap.npz", path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    weights = read(path)
    with pytest.raises(UserError, match="No space left on device"):
        write(path, weights.params, weights.model, dialect="official")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("dialect", dialects.DIALECTS, ids=lambda d: f"{d.name}-{d.variant}")
def test_a_name_table_is_the_same_in_both_directions(dialect):
    models = [
        Model(patch_size=1, stem_width=64, stem_blocks=(3, 4, 9), depth=12, classes=5, pre_logits=4),
        Model(depth=2, classes=5, pooling="map", qk_norm=True),
        Model(depth=2, classes=5, distill_token=True, layer_scale=1e-4),
        Model(depth=2, classes=5, mlp="swiglu", registers=2),
        Model(depth=2, classes=5, pooling="gap", embed_norm=True, final_norm="pooled", mlp_norm=True),
        Model(**MIXER_ONLY, family="mixer", token_width=3, classes=5),
    ]
    held = {n for model in models for n in layout.shapes(model) if dialect.theirs(n)}
    assert len(held) > 20
    assert "embed/patch/kernel" in held
    assert "norm/scale" in held or dialect.variant == "clip classifier"  # which has no last norm
    for name in held:
        theirs, row = dialect.theirs(name)
        assert (name, row) in dialect.ours(theirs)
    places = {(theirs, row.nth) for theirs, row in map(dialect.theirs, held)}
    assert len(places) == len(held)
    assert not dialect.ours(dialect.theirs("block_0/norm1/scale")[0].replace("0", "01", 1))


def test_every_published_checkpoint_names_a_variant_and_a_bucket():
    from vit_jax.models import variants

    for name, row in published.TABLE.items():
        model = Model(**variants.model(row.variant), image_size=row.image_size, classes=row.classes)
        assert row.url.startswith("gs://")
        assert row.url.endswith(".npz")
        assert model.classes in (1000, 21843)
        assert published.find(name) == published.find(row.url) == row
        assert (row.top1 is None) == (row.source == "")
    assert published.find("augreg/B_16-384").top1 == 85.49
    assert published.find("nothing.npz") is None
    tuned = published.find(
        "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0--cifar100-steps_2k-lr_0.01-res_224.npz"
    )
    assert (tuned.variant, tuned.classes, tuned.image_size) == ("S/16", 100, 224)


def test_class_names_come_with_published_heads_only():
    names = published.class_names(published.find("augreg/B_16-384"), 1000)
    assert len(names) == 1000
    assert names[0].startswith("tench")
    assert names[999].startswith("toilet tissue")
    large = published.class_names(None, 21843)
    assert len(large) == 21843
    assert large[0].startswith("organism")
    assert (
        published.class_names(None, 1000)
        == ()
        == published.class_names(published.find("augreg/B_16-384"), 10)
    )


def test_official_writes_group_norms_with_four_dimensions():
    model = Model(patch_size=1, stem_width=32, stem_blocks=(1,), image_size=32, classes=2)
    arrays = official.VIT.arrays(random_params(model), model)
    assert arrays["gn_root/scale"].shape == (1, 1, 1, 32)
