"""Every config file, in every recipe, builds: shapes only, no memory."""

import jax
import pytest
from config_files import FILES, RECIPES, parse

from vit_jax.models import build, variants

COUNTS = {"vit_b16": 86_567_656, "hybrid_r26_s32": 36_431_912, "mixer_b16": 59_880_472}  # 1,000 classes


@pytest.mark.long
@pytest.mark.parametrize(("path", "arg"), RECIPES, ids=lambda x: getattr(x, "stem", x))
def test_every_config_builds(path, arg):
    cfg = parse(path, arg)
    model = build.build(cfg.model, classes=1000)
    image = jax.ShapeDtypeStruct((2, *cfg.model.image_hw, cfg.data.channels), "float32")
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert logits.shape == (2, 1000)
    assert logits.dtype == "float32"
    if not arg and path.stem in COUNTS:
        assert build.count(variables["params"]) == COUNTS[path.stem]


def test_every_published_variant_has_a_config_file():
    texts = [p.read_text() for p in FILES]
    for variant in variants.PUBLISHED:
        assert any(f'recipes.imagenet("{variant}"' in text for text in texts), variant
