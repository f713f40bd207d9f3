"""No field of a model is dead: another value is another program, and none is the one without the feature."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import HYBRID, MIXER, NO_TOKENS, SMALL, shapes

from vit_jax.models import build
from vit_jax.sections import Model


@functools.cache
def program(cfg: Model, scale: int = 1, **form: Any) -> str:
    """All that a field can change: initialisation, training and inference, as text without addresses.

    Images are `scale` times as large as those that positions are stored for.
    """
    model, key = build.build(cfg, **form), jax.random.key(0)
    h, w = cfg.image_hw
    images_bhwc = jnp.zeros((2, scale * h, scale * w, 3))
    init = lambda key: build.init(model, key, image_hw=cfg.image_hw, channels=3)
    params = jax.eval_shape(init, key)
    infer = lambda p: model.apply({"params": p}, images_bhwc)
    train = lambda p, key: model.apply({"params": p}, images_bhwc, train=True, rngs={"dropout": key})
    texts = [jax.make_jaxpr(init)(key), jax.make_jaxpr(infer)(params), jax.make_jaxpr(train)(params, key)]
    constants = [np.asarray(c).tobytes() for text in texts for c in text.consts]
    return re.sub(
        r"0x[0-9a-f]+", "", "\n".join(map(str, [*texts, *constants, jax.tree.map(jnp.shape, params)]))
    )


# A value apart from the base's, and a base in which the field has a meaning.
PERTURBED: dict[str, tuple[dict[str, Any], Any]] = {
    "family": (NO_TOKENS | {"family": "mixer", "token_width": 12}, ("vit", 0)),
    "image_size": (SMALL, 32),
    "patch_size": (SMALL, 8),
    "stem_width": (HYBRID, 64),
    "stem_blocks": (HYBRID, (2, 2)),
    "width": (SMALL, 48),
    "depth": (SMALL, 3),
    "heads": (SMALL, 2),
    "mlp_width": (SMALL, 48),
    "mlp": (SMALL, "swiglu"),
    "token_width": (MIXER, 16),
    "classes": (SMALL, 6),
    "class_token": (SMALL | {"pooling": "gap"}, False),
    "distill_token": (SMALL, True),
    "registers": (SMALL, 2),
    "posemb": (SMALL, "sincos2d"),
    "posemb_class_slot": (SMALL, False),
    "posemb_method": (SMALL, "bicubic"),
    "pooling": (SMALL, "map"),
    "pre_logits": (SMALL, 7),
    "qk_norm": (SMALL, True),
    "distill_head": (SMALL | {"distill_token": True}, False),
    "patch_bias": (SMALL, False),
    "embed_norm": (SMALL, True),
    "rotary": (SMALL, "dinov3"),
    "relative_bias": (SMALL, True),
    "rotary_grid": (SMALL | {"rotary": "eva02"}, 7),
    "pool_heads": (SMALL | {"pooling": "map"}, 1),
    "pool_mlp_width": (SMALL | {"pooling": "map"}, 12),
    "final_norm": (SMALL, "none"),
    "pre_logits_form": (SMALL | {"pre_logits": 7}, "linear"),
    "branch_norm": (SMALL, "after"),
    "qkv_bias": (SMALL, "query_value"),
    "attention_norm": (SMALL, True),
    "mlp_norm": (SMALL, True),
    "layer_scale": (SMALL, 0.1),
    "dropout": (SMALL, 0.1),
    "stochastic_depth": (SMALL, 0.1),
    "gelu": (SMALL, "exact"),
    "norm_eps": (SMALL, 1e-5),
    "stem_eps": (HYBRID, "timm"),
    "head_bias": (SMALL, -1.0),
    "dtype": (SMALL, "bfloat16"),
}


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Model)])
def test_no_field_is_dead(name):
    base, value = PERTURBED[name]
    change = {"family": value[0], "token_width": value[1]} if name == "family" else {name: value}
    scale = 2 if name == "posemb_method" else 1
    assert program(Model(**base), scale) != program(Model(**(base | change)), scale)


@pytest.mark.long
@pytest.mark.parametrize("base", [HYBRID, MIXER], ids=["hybrid", "mixer"])
@pytest.mark.parametrize("name", ["dropout", "stochastic_depth", "gelu", "norm_eps", "head_bias", "dtype"])
def test_no_field_is_dead_in_other_families(base, name):
    assert program(Model(**base)) != program(Model(**(base | {name: PERTURBED[name][1]})))


@pytest.mark.long
@pytest.mark.parametrize("base", [SMALL, HYBRID, MIXER], ids=["vit", "hybrid", "mixer"])
@pytest.mark.parametrize("form", [{"scan": True}, {"remat": "full"}], ids=str)
def test_scan_and_remat_are_alive_in_every_family(base, form):
    cfg = Model(**base)
    assert program(cfg) != program(cfg, **form)


ADDED = {
    "distill_token": (True, r"embed/distill_token|head_distill/(kernel|bias)"),
    "registers": (2, r"embed/registers"),
    "layer_scale": (0.1, r"block_\d/scale[12]/gamma"),
    "relative_bias": (True, r"block_\d/attention/relative_bias"),
    "qk_norm": (True, r"block_\d/attention/(query|key)_norm/(scale|bias)"),
    "embed_norm": (True, r"embed/norm/(scale|bias)"),
    "attention_norm": (True, r"block_\d/attention/norm/(scale|bias)"),
    "mlp_norm": (True, r"block_\d/mlp/norm/(scale|bias)"),
    "mlp": ("swiglu", r"block_\d/mlp/gate/(kernel|bias)"),
    "stem_width": (32, r"embed/stem/(conv|norm)_root/(kernel|scale|bias)"),
}


@pytest.mark.parametrize("name", ADDED)
def test_a_feature_adds_its_own_parameters_and_nothing_when_off(name):
    value, pattern = ADDED[name]
    base = SMALL | {"patch_size": 4}
    off, on = shapes(Model(**base)), shapes(Model(**(base | {name: value})))
    assert all(re.fullmatch(pattern, k) for k in on.keys() - off.keys())
    assert len(on) > len(off)
    assert off.keys() < on.keys()
    assert not any(re.fullmatch(pattern, k) for k in off)
    again = dataclasses.replace(
        Model(**(base | {name: value})), **{name: Model.__dataclass_fields__[name].default}
    )
    assert program(again) == program(Model(**base))
