"""Attention maps: exact rows, a plain reference for rollout and distance, and untouched logits."""

import json

import jax
import numpy as np
import pytest
from commands import call
from paths import GOLDEN
from PIL import Image
from weight_files import nest, random_params

from vit_jax.analysis import attention
from vit_jax.cli import attention as command
from vit_jax.errors import UserError
from vit_jax.models.build import build
from vit_jax.sections import Model
from vit_jax.weights.load import read
from vit_jax.weights.save import write

SIZES = {
    "image_size": (24, 32),
    "patch_size": 8,
    "width": 48,
    "depth": 3,
    "heads": 3,
    "mlp_width": 8,
    "classes": 2,
}
MODELS = {
    "plain": Model(**SIZES),
    "map": Model(**SIZES, class_token=False, pooling="map"),
    "gap": Model(**SIZES, class_token=False, pooling="gap"),
    "registers": Model(**SIZES, registers=2, layer_scale=0.1, qk_norm=True),
    "distilled": Model(**SIZES, distill_token=True),
    "bfloat16": Model(**SIZES, dtype="bfloat16"),
    "hybrid": Model(**SIZES | {"patch_size": 2}, stem_width=32),
}


def run(cfg, *, every=True):
    model, params = build(cfg), nest(random_params(cfg))
    params = jax.tree.map(lambda x: x * np.float32(0.2), params)
    image = np.random.default_rng(1).normal(size=(2, 24, 32, 3)).astype(np.float32)
    maps = jax.jit(lambda p, x: attention.capture(cfg, p, x, every=every))(params, image)
    logits = jax.jit(lambda p, x: model.apply({"params": p}, x, mutable=["intermediates"])[0])(params, image)
    return maps, logits, (model, params, image)


@pytest.mark.parametrize("cfg", MODELS.values(), ids=MODELS)
def test_logits_are_the_same_bits_and_rows_sum_to_one(cfg):
    maps, logits, (model, params, image) = run(cfg)
    np.testing.assert_array_equal(maps.output, logits)  # both of whole blocks
    # Without a capture the last block may compute fewer tokens: the same sums in products of other shapes,
    # rounded to 8 bits in bfloat16.
    plain = jax.jit(model.apply)({"params": params}, image)
    np.testing.assert_allclose(plain, logits, rtol=1e-5, atol=2e-2 if cfg.dtype == "bfloat16" else 1e-6)
    # A sum of float32 quotients, or of quotients rounded to 8 bits.
    atol = 2e-2 if cfg.dtype == "bfloat16" else 1e-6
    np.testing.assert_allclose(maps.layers.sum(axis=-1), 1.0, rtol=0, atol=atol)
    np.testing.assert_allclose(maps.rollout.sum(axis=-1), 1.0, rtol=0, atol=atol)
    row = attention.readout(np.asarray(maps.last[0, 0]), cfg)
    assert sum(attention.shares(row, cfg).values()) == pytest.approx(1.0, abs=atol)
    assert attention.to_grid(row, cfg).shape == (3, 4)
    if cfg.pooling == "map":
        np.testing.assert_allclose(maps.pooling.sum(axis=-1), 1.0, rtol=0, atol=atol)


def test_the_program_is_the_same_where_attention_is_not_asked_for(monkeypatch):
    from vit_jax.models.layers import Attention

    _, _, (model, params, image) = run(MODELS["plain"])
    jaxpr = lambda: str(jax.make_jaxpr(model.apply)({"params": params}, image))
    asked = jaxpr()
    monkeypatch.setattr(Attention, "sow", lambda *args: True)
    assert jaxpr() == asked


def test_not_all_layers_are_kept_unless_asked_for():
    assert run(MODELS["plain"], every=False)[0].layers is None


def test_rollout_and_distance_are_those_of_plain_numpy():
    cfg = MODELS["registers"]
    maps, _, _ = run(cfg)
    layers = np.asarray(maps.layers, np.float64)
    wanted = np.stack([np.eye(layers.shape[-1])] * 2)
    for p_bhnm in layers:
        wanted = (p_bhnm.mean(axis=1) + np.eye(layers.shape[-1])) / 2 @ wanted
    # Float32 against float64, products of rows that sum to one.
    np.testing.assert_allclose(maps.rollout, wanted, rtol=0, atol=1e-6)
    first = 1 + cfg.registers
    for layer in range(cfg.depth):
        for head in range(cfg.heads):
            total = 0.0
            for b in range(2):
                for q in range(12):
                    row = layers[layer, b, head, first + q, first:]
                    far = [8 * np.hypot(q // 4 - k // 4, q % 4 - k % 4) for k in range(12)]
                    total += float(row @ far) / row.sum() / 24
            assert float(maps.distance_lh[layer, head]) == pytest.approx(total, rel=1e-5)


def test_uniform_attention_has_the_grids_mean_distance():
    cfg = Model(image_size=(8, 16), patch_size=8)
    p = np.full((1, 1, 2, 2), 0.25, np.float32)  # as if half of it went to other tokens
    assert attention.mean_distance(p, cfg).tolist() == [4.0]


def test_a_mixer_has_no_attention():
    with pytest.raises(UserError, match="family=mixer has no attention"):
        attention.tokens(read(GOLDEN / "mixer.npz").model)


@pytest.mark.parametrize(("show", "maps"), [("heads", 4), ("layers", 3), ("rollout", 1)])
@pytest.mark.parametrize("kind", ["plain", "map", "registers"])
def test_the_command_draws_and_prints(monkeypatch, capsys, tmp_path, show, maps, kind):
    cfg = MODELS[kind]
    path, picture = tmp_path / "w.npz", tmp_path / "map.png"
    if kind == "registers":
        write(path, nest(random_params(cfg)), cfg, dialect="timm", numerics="theirs")
    else:
        write(path, nest(random_params(cfg)), cfg, dialect="big_vision")
    Image.new("RGB", (50, 40), (10, 100, 200)).save(tmp_path / "x.png")
    code, out, _ = call(
        monkeypatch, capsys, command, path, tmp_path / "x.png", "--show", show, "--out", picture, "--json"
    )
    facts = json.loads(out)
    assert code == 0
    assert np.shape(facts["maps"]) == (maps, 3, 4)
    assert len(facts["distance_px"]) == 3
    assert (facts["attention_to"]["registers"] > 0) == (kind == "registers")
    with Image.open(picture) as drawn:
        assert drawn.width > 200


def test_mistakes_are_one_line(monkeypatch, capsys, tmp_path):
    image = tmp_path / "x.png"
    Image.new("RGB", (50, 40)).save(image)
    for arguments, message in (
        ((tmp_path / "no", image), "is no run directory"),
        ((GOLDEN / "vit_gap.npz", tmp_path / "no.png"), "cannot read"),
        ((GOLDEN / "mixer.npz", image), "has no attention"),
        ((GOLDEN / "vit_gap.npz", image, "--out", tmp_path / "no" / "x.png"), "there is no folder"),
    ):
        code, _, err = call(monkeypatch, capsys, command, *arguments)
        assert code == 2
        assert message in err[-1]
