"""Files in and out: every dialect, every quirk, every round trip."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vit_jax.config import MIXER_ONLY, Model
from vit_jax.errors import UserError
from vit_jax.models.build import build
from vit_jax.weights import adapt, layout, npz, official, published, save
from vit_jax.weights.load import read, set_in
from vit_jax.weights.save import flatten, write

GOLDEN = Path(__file__).parent / "golden"


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def nest(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        set_in(tree, name, array)
    return tree


def random_params(model: Model, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in layout.shapes(model).items()}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def logits(model: Model, params: Any, images: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(build(model).apply)({"params": params}, images))


def images(name: str) -> np.ndarray:
    return np.load(GOLDEN / f"{name}.io.npz")["images"]


# --- what is read ---------------------------------------------------------------------------------------------


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
        with pytest.raises(UserError, match="1 unexplained: t;"):
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
    assert weights.model.posemb_class_slot and not wanted.model.posemb_class_slot
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
    assert weights.model.classes == 10 and weights.model.pre_logits == 40 and not weights.report.reset


def test_grey_images_are_told_by_the_kernel(tmp_path):
    model = Model(image_size=32, patch_size=8, width=48, depth=1, heads=3, mlp_width=8, classes=2)
    params = random_params(model)
    params["embed/patch/kernel"] = params["embed/patch/kernel"][:, :, :1]
    write(tmp_path / "w.npz", nest(params), model, dialect="official")
    assert read(tmp_path / "w.npz").preprocess.channels == 1


# --- what is adapted ------------------------------------------------------------------------------------------


def test_a_head_is_reset_only_when_asked_for_other_classes():
    same = read(GOLDEN / "vit_token.npz", classes=10)
    assert not same.report.reset and np.any(same.params["head"]["kernel"])
    other = read(GOLDEN / "vit_prelogits.npz", classes=7)
    assert other.model.classes == 7 and other.model.pre_logits == 40
    assert other.params["head"]["kernel"].shape == (40, 7) and not np.any(other.params["head"]["kernel"])
    assert other.report.reset[0].what == "zeros for 7 classes, in place of 10"
    tuned = read(GOLDEN / "vit_prelogits.npz", classes=7, keep_pre_logits=False)
    assert tuned.model.pre_logits == 0 and tuned.params["head"]["kernel"].shape == (48, 7)
    assert flatten(tuned.params).keys() == layout.shapes(tuned.model).keys()
    with pytest.raises(UserError, match="classes=0"):
        read(GOLDEN / "vit_token.npz", classes=0)


def test_a_file_without_a_head_needs_a_class_count(tmp_path):
    headless = {k: v for k, v in arrays(GOLDEN / "vit_token.npz").items() if not k.startswith("head")}
    np.savez(tmp_path / "w.npz", **headless)
    with pytest.raises(UserError, match="has no head: pass classes="):
        read(tmp_path / "w.npz")
    assert read(tmp_path / "w.npz", classes=3).model.classes == 3


@pytest.mark.parametrize(
    "name", ["vit_token", "vit_gap", "bigvision_tok", "bigvision_map", "bigvision_gap_sincos"]
)
@pytest.mark.parametrize("image_size", [16, 48, (24, 40), (64, 8)])
@pytest.mark.parametrize("method", ["official", "bicubic"])
def test_a_model_runs_at_any_resolution_and_aspect(name, image_size, method):
    weights = read(GOLDEN / f"{name}.npz", image_size=image_size, posemb_method=method)
    h, w = weights.model.image_hw
    batch = np.random.default_rng(0).normal(size=(1, h, w, 3)).astype(np.float32)
    assert np.all(np.isfinite(logits(weights.model, weights.params, batch)))
    back = adapt.resize(weights, 32)
    assert back.model.grid_hw == (4, 4)
    if weights.model.posemb == "learned":
        assert weights.report.resized[0].what == f"4x4 to {h // 8}x{w // 8} by {method}"


def test_a_mixer_fits_one_resolution_only():
    with pytest.raises(UserError, match="a Mixer's weights fit only the 4x4 patches"):
        read(GOLDEN / "mixer.npz", image_size=48)


def test_the_report_says_in_a_few_lines_what_became_of_every_array(capsys):
    report = read(GOLDEN / "hybrid_resnet.npz", image_size=64, classes=3).report
    printed = capsys.readouterr()
    assert printed.err.strip() == str(report) and not printed.out
    lines = str(report).splitlines()
    assert lines[0].startswith(f"loaded {len(arrays(GOLDEN / 'hybrid_resnet.npz'))} arrays, ")
    assert "  resized embed/positions: 4x4 to 8x8 by official" in lines
    assert "  reset head: zeros for 3 classes, in place of 10" in lines
    assert len(lines) == 4 and "4 dimensions to 1" in lines[3]


# --- what is written ------------------------------------------------------------------------------------------

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


@given(model=models(), seed=st.integers(0, 99), dialect=st.sampled_from(["official", "big_vision"]))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_random_model_survives_the_round_trip_or_is_refused(model, seed, dialect, tmp_path):
    params, path = random_params(model, seed), tmp_path / "w.npz"
    into = save.DIALECTS[dialect, model.family]
    holds = all(into.names.theirs(name) for name in params) and (
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
    assert again.model.image_hw == model.image_hw and not again.report.resized
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
    with pytest.raises(UserError, match="dialect='timm'"):
        write(tmp_path / "w.npz", weights.params, weights.model, dialect="timm")
    with pytest.raises(UserError, match="could not be written"):
        write(tmp_path / "no" / "w.npz", weights.params, weights.model, dialect="official")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.npz"
    shutil.copy(GOLDEN / "vit_gap.npz", path)
    before = path.read_bytes()
    monkeypatch.setattr(
        npz.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    weights = read(path)
    with pytest.raises(UserError, match="No space left on device"):
        write(path, weights.params, weights.model, dialect="official")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# --- names and the table --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [*save.DIALECTS.values()], ids=lambda d: f"{d.name}-{d.family}")
def test_a_name_table_is_the_same_in_both_directions(dialect):
    models = {
        "vit": [
            Model(patch_size=1, stem_width=64, stem_blocks=(3, 4, 9), depth=12, classes=5, pre_logits=4),
            Model(classes=5, pooling="map"),
        ],
        "mixer": [Model(**MIXER_ONLY, family="mixer", token_width=3, classes=5)],
    }[dialect.family]
    held = [n for model in models for n in layout.shapes(model) if dialect.names.theirs(n)]
    assert len(held) > 40
    for name in held:
        assert dialect.names.ours(dialect.names.theirs(name)) == name
    assert len({dialect.names.theirs(name) for name in held}) == len(set(held))
    assert dialect.names.ours("Transformer/encoderblock_01/LayerNorm_0/scale") is None


def test_every_published_checkpoint_names_a_variant_and_a_bucket():
    from vit_jax.models import variants

    for name, row in published.TABLE.items():
        model = Model(**variants.model(row.variant), image_size=row.image_size, classes=row.classes)
        assert row.url.startswith("gs://") and row.url.endswith(".npz") and model.classes in (1000, 21843)
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
    assert len(names) == 1000 and names[0].startswith("tench") and names[999].startswith("toilet tissue")
    large = published.class_names(None, 21843)
    assert len(large) == 21843 and large[0].startswith("organism")
    assert (
        published.class_names(None, 1000)
        == ()
        == published.class_names(published.find("augreg/B_16-384"), 10)
    )


def test_official_writes_group_norms_with_four_dimensions():
    model = Model(patch_size=1, stem_width=32, stem_blocks=(1,), image_size=32, classes=2)
    packed = official.VIT.pack(random_params(model), model)
    assert packed["embed/stem/norm_root/scale"].shape == (1, 1, 1, 32)


@pytest.mark.parametrize("name", ["vit_token", "vit_gap"])
def test_a_rectangular_file_of_others_needs_its_image_size(name, tmp_path):
    stored = arrays(GOLDEN / f"{name}.npz")
    position = "Transformer/posembed_input/pos_embedding"
    stored[position] = stored[position][:, :-1]  # 15 patches, 3x5
    np.savez(tmp_path / "w.npz", **stored)
    with pytest.raises(UserError, match=r"make no square grid: pass image_size=\(height, width\)"):
        read(tmp_path / "w.npz")
    weights = read(tmp_path / "w.npz", image_size=(24, 40))
    assert weights.model.grid_hw == (3, 5) and not weights.report.resized
    write(tmp_path / "ours.npz", weights.params, weights.model, dialect="official")
    assert read(tmp_path / "ours.npz", image_size=(40, 24)).report.resized[0].what == "3x5 to 5x3 by official"
