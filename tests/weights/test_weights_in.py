"""Files in: every dialect and every quirk, and what is adapted on the way."""

import ml_dtypes
import numpy as np
import pytest
from paths import GOLDEN
from weight_files import arrays, assert_same, images, logits, nest, random_params

from vit_jax.errors import UserError
from vit_jax.sections import Model
from vit_jax.weights import adapt, layout
from vit_jax.weights.adapt import Wish
from vit_jax.weights.load import read
from vit_jax.weights.save import flatten, write


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vit_token", {"class_token": True, "pooling": "token"}),
        ("vit_gap", {"class_token": False, "pooling": "gap"}),
        ("vit_prelogits", {"pre_logits": 40}),
        ("hybrid_stem", {"stem_width": 64, "stem_blocks": (), "patch_size": 8, "image_size": 64}),
        ("hybrid_resnet", {"stem_width": 64, "stem_blocks": (1, 1), "patch_size": 1}),
        ("bigvision_tok", {"posemb_class_slot": False}),
        ("bigvision_map", {"class_token": False, "pooling": "map"}),
        ("bigvision_scan", {"depth": 2, "pooling": "gap", "class_token": False}),
        ("bigvision_gap_sincos", {"posemb": "sincos2d", "image_size": 224, "pre_logits": 48}),
        ("mixer", {"family": "mixer", "token_width": 24, "heads": 1}),
    ],
)
def test_the_file_alone_tells_the_model(name, fields):
    weights = read(GOLDEN / f"{name}.npz")
    common = {
        "patch_size": 8,
        "image_size": 32,
        "width": 48,
        "depth": 2,
        "heads": 3,
        "mlp_width": 96,
        "classes": 10,
    }
    for field, value in (common | fields).items():
        assert getattr(weights.model, field) == value, field
    assert flatten(weights.params).keys() == layout.shapes(weights.model).keys()
    assert weights.report.parameters == sum(a.size for a in flatten(weights.params).values())


@pytest.mark.parametrize("prefix", ["opt/target/", "params/", "params/img/", ""])
@pytest.mark.parametrize("name", ["vit_token", "bigvision_map", "mixer"])
def test_a_prefix_is_taken_off_and_all_beside_it_is_ignored_and_said(prefix, name, tmp_path):
    bare = {k.removeprefix("params/"): v for k, v in arrays(GOLDEN / f"{name}.npz").items()}
    beside = {"opt/state/step": np.array(7), "params/t": np.zeros(1, np.float32)} if prefix else {}
    np.savez(tmp_path / "w.npz", **{prefix + k: v for k, v in bare.items()}, **beside)
    if prefix == "params/":
        with pytest.raises(UserError, match="1 unexplained: params/t;"):
            read(tmp_path / "w.npz")
        return
    weights = read(tmp_path / "w.npz")
    assert {note.name for note in weights.report.ignored} == beside.keys()
    assert_same(flatten(weights.params), flatten(read(GOLDEN / f"{name}.npz").params))


def test_a_submodel_is_read_by_its_suffix(tmp_path):
    bare = {k.removeprefix("params/"): v for k, v in arrays(GOLDEN / "bigvision_map.npz").items()}
    np.savez(
        tmp_path / "w.npz",
        **{f"params/{part}/{k}": v for k, v in bare.items() for part in ("img", "teacher")},
    )
    for part in ("img", "teacher"):
        weights = read(f"{tmp_path / 'w.npz'}:{part}")
        assert len(weights.report.ignored) == len(bare)
    with pytest.raises(UserError, match="under 'txt'"):
        read(f"{tmp_path / 'w.npz'}:txt")


def test_linens_names_in_an_official_file_are_read_as_well(tmp_path):
    renamed = {}
    for name, array in arrays(GOLDEN / "vit_token.npz").items():
        for old, new in (
            ("LayerNorm_2", "LayerNorm_1"),
            ("Attention_1", "Attention_0"),
            ("Block_3", "Block_0"),
        ):
            name = name.replace(old, new)
        renamed[name] = array
    np.savez(tmp_path / "w.npz", **renamed)
    weights, wanted = read(tmp_path / "w.npz"), read(GOLDEN / "vit_token.npz")
    assert weights.model == wanted.model
    assert_same(flatten(weights.params), flatten(wanted.params))


def test_the_oldest_mixer_layout_computes_the_same(tmp_path):
    old = {}
    for name, array in arrays(GOLDEN / "mixer.npz").items():
        name = name.replace("pre_head_layer_norm", "Mixer/encoder_norm").replace("stem", "embedding")
        name = name.replace("MixerBlock_", "Mixer/encoderblock_").replace("_mixing/", "_mixing_phase_0/")
        if "_mixing_phase_0" in name:
            head, dense, leaf = name.rsplit("/", 2)
            name, array = f"{head}/{leaf}{int(dense[-1]) + 1}", array[None, None]
        old[name] = array
    np.savez(tmp_path / "w.npz", **old)
    weights = read(tmp_path / "w.npz")
    assert weights.report.dialect == "oldest Mixer"
    assert {n.what for n in weights.report.converted} == {"4 dimensions to 2", "3 dimensions to 1"}
    assert_same(flatten(weights.params), flatten(read(GOLDEN / "mixer.npz").params))


def test_older_big_vision_layouts_compute_the_same(tmp_path):
    inlined = {k.replace("MAPHead_0/", ""): v for k, v in arrays(GOLDEN / "bigvision_map.npz").items()}
    inlined["params/Transformer/pos_embedding"] = inlined.pop("params/pos_embedding")
    np.savez(tmp_path / "map.npz", **inlined)
    assert_same(
        flatten(read(tmp_path / "map.npz").params), flatten(read(GOLDEN / "bigvision_map.npz").params)
    )
    with_slot = arrays(GOLDEN / "bigvision_tok.npz")
    pos, token = with_slot.pop("params/pos_embedding"), with_slot["params/cls"]
    with_slot["params/cls"] = token / 2
    with_slot["params/Transformer/pos_embedding"] = np.concatenate([token / 2, pos], axis=1)
    np.savez(tmp_path / "tok.npz", **with_slot)
    weights, wanted = read(tmp_path / "tok.npz"), read(GOLDEN / "bigvision_tok.npz")
    assert weights.model.posemb_class_slot
    assert not wanted.model.posemb_class_slot
    batch = images("bigvision_tok")
    # Halves add up exactly; what is left is the order of sums in another program.
    np.testing.assert_allclose(
        logits(weights.model, weights.params, batch),
        logits(wanted.model, wanted.params, batch),
        rtol=0,
        atol=2e-6,
    )


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_float_types_become_float32(dtype, tmp_path):
    stored = {k: v.astype(dtype) for k, v in arrays(GOLDEN / "bigvision_tok.npz").items()}
    np.savez(tmp_path / "w.npz", **stored)
    weights = read(tmp_path / "w.npz")
    wanted = stored["params/head/kernel"].astype(np.float32)
    np.testing.assert_array_equal(weights.params["head"]["kernel"], wanted)
    assert len(weights.report.converted) == len(stored)
    assert f"{np.dtype(dtype).name} to float32" in str(weights.report)


def test_a_fortran_ordered_and_compressed_file_reads_the_same(tmp_path):
    np.savez_compressed(
        tmp_path / "w.npz", **{k: np.asfortranarray(v) for k, v in arrays(GOLDEN / "vit_gap.npz").items()}
    )
    assert_same(flatten(read(tmp_path / "w.npz").params), flatten(read(GOLDEN / "vit_gap.npz").params))


def test_a_zeroed_head_is_a_head(tmp_path):
    zeroed = {
        k: v * 0 if k.startswith("head/") else v for k, v in arrays(GOLDEN / "vit_prelogits.npz").items()
    }
    np.savez(tmp_path / "w.npz", **zeroed)
    weights = read(tmp_path / "w.npz")
    assert weights.model.classes == 10
    assert weights.model.pre_logits == 40
    assert not weights.report.reset


def test_grey_images_are_told_by_the_kernel(tmp_path):
    model = Model(image_size=32, patch_size=8, width=48, depth=1, heads=3, mlp_width=8, classes=2)
    params = random_params(model)
    params["embed/patch/kernel"] = params["embed/patch/kernel"][:, :, :1]
    write(tmp_path / "w.npz", nest(params), model, dialect="official")
    assert read(tmp_path / "w.npz").preprocess.channels == 1


def test_a_head_is_reset_only_when_asked_for_other_classes():
    same = read(GOLDEN / "vit_token.npz", Wish(classes=10))
    assert not same.report.reset
    assert np.any(same.params["head"]["kernel"])
    other = read(GOLDEN / "vit_prelogits.npz", Wish(classes=7))
    assert other.model.classes == 7
    assert other.model.pre_logits == 40
    assert other.params["head"]["kernel"].shape == (40, 7)
    assert not np.any(other.params["head"]["kernel"])
    assert other.report.reset[0].what == "zeros for 7 classes, in place of 10"
    for classes in (7, 10):  # a head of the same classes, too: it is for the hidden layer
        tuned = read(GOLDEN / "vit_prelogits.npz", Wish(classes=classes, keep_pre_logits=False))
        assert tuned.model.pre_logits == 0
        np.testing.assert_array_equal(tuned.params["head"]["kernel"], np.zeros((48, classes)))
        assert flatten(tuned.params).keys() == layout.shapes(tuned.model).keys()
    with pytest.raises(UserError, match="classes=0"):
        read(GOLDEN / "vit_token.npz", Wish(classes=0))


def test_a_file_without_a_head_is_read_as_it_is(tmp_path):
    headless = {k: v for k, v in arrays(GOLDEN / "vit_token.npz").items() if not k.startswith("head")}
    np.savez(tmp_path / "w.npz", **headless)
    weights = read(tmp_path / "w.npz")
    assert (weights.model.classes, "head" in weights.params) == (0, False)
    with pytest.raises(UserError, match="the model has no head, so it gives no logits: ask for its features"):
        logits(weights.model, weights.params, images("vit_token"))
    assert read(tmp_path / "w.npz", Wish(classes=3)).model.classes == 3


@pytest.mark.parametrize(
    "name", ["vit_token", "vit_gap", "bigvision_tok", "bigvision_map", "bigvision_gap_sincos"]
)
@pytest.mark.parametrize("image_size", [16, 48, (24, 40), (64, 8)])
def test_a_model_runs_at_any_resolution_and_aspect(name, image_size):
    method = "bicubic" if image_size == 48 else "official"
    weights = read(GOLDEN / f"{name}.npz", Wish(image_size=image_size, posemb_method=method))
    h, w = weights.model.image_hw
    batch = np.random.default_rng(0).normal(size=(1, h, w, 3)).astype(np.float32)
    assert np.all(np.isfinite(logits(weights.model, weights.params, batch)))
    back = adapt.resize(weights, 32)
    assert back.model.grid_hw == (4, 4)
    if weights.model.posemb == "learned":
        assert weights.report.resized[0].what == f"4x4 to {h // 8}x{w // 8} by {method}"


def test_a_mixer_fits_one_resolution_only():
    with pytest.raises(UserError, match="a Mixer's weights fit only the 4x4 patches"):
        read(GOLDEN / "mixer.npz", Wish(image_size=48))


def test_the_report_says_in_a_few_lines_what_became_of_every_array():
    report = read(GOLDEN / "hybrid_resnet.npz", Wish(image_size=64, classes=3)).report
    lines = str(report).splitlines()
    assert lines[0].startswith(f"loaded {len(arrays(GOLDEN / 'hybrid_resnet.npz'))} arrays, ")
    assert "  resized embed/positions: 4x4 to 8x8 by official" in lines
    assert "  reset head: zeros for 3 classes, in place of 10" in lines
    assert len(lines) == 4
    assert "4 dimensions to 1" in lines[3]


@pytest.mark.parametrize("name", ["vit_token", "vit_gap"])
def test_a_rectangular_file_of_others_needs_its_image_size(name, tmp_path):
    stored = arrays(GOLDEN / f"{name}.npz")
    position = "Transformer/posembed_input/pos_embedding"
    stored[position] = stored[position][:, :-1]  # 15 patches, 3x5
    np.savez(tmp_path / "w.npz", **stored)
    with pytest.raises(UserError, match=r"make no square grid: pass image_size=\(height, width\)"):
        read(tmp_path / "w.npz")
    weights = read(tmp_path / "w.npz", Wish(image_size=(24, 40)))
    assert weights.model.grid_hw == (3, 5)
    assert not weights.report.resized
    write(tmp_path / "ours.npz", weights.params, weights.model, dialect="official")
    turned = read(tmp_path / "ours.npz", Wish(image_size=(40, 24)))
    assert turned.report.resized[0].what == "3x5 to 5x3 by official"
