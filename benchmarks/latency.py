"""One image: `classify` beside a bare jitted call of batch 1, in turns, by processor time.

python benchmarks/latency.py
"""

import statistics
import time

import jax
import numpy as np

from vit_jax.loaded import Loaded
from vit_jax.models import build, variants
from vit_jax.sections import Data, Model, Spec
from vit_jax.training.step import normalise
from vit_jax.weights.report import Report

TURNS = 40
VARIANT, CLASSES, SIDE_PX = "S/16", 1000, 224


def main() -> None:
    """Compile both, take turns, print the medians and their ratio."""
    cfg = Model(**{**variants.model(VARIANT), "classes": CLASSES, "image_size": SIDE_PX})
    model, spec = build.build(cfg), Spec(model=cfg)
    params = build.init(model, jax.random.key(0), image_hw=cfg.image_hw, channels=3)
    loaded = Loaded(model, params, spec, Data(), Report("fresh", "ours", 0))
    image_hwc = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)

    @jax.jit
    def bare(params, image_bhwc):
        return jax.nn.softmax(model.apply({"params": params}, normalise(image_bhwc, spec.preprocess)))

    ways = (lambda: np.asarray(bare(params, image_hwc[None])), lambda: loaded.classify([image_hwc]))
    for way in ways:
        way()
    spent = [[_spent(way) for way in ways] for _ in range(TURNS)]
    alone_s, classify_s = map(statistics.median, zip(*spent, strict=True))
    print(
        f"{VARIANT} at {SIDE_PX} px: bare {1e3 * alone_s:.1f} ms, classify {1e3 * classify_s:.1f} ms of "
        f"processor time, {classify_s / alone_s:.3f} times"
    )


def _spent(way) -> float:
    start = time.process_time()
    way()
    return time.process_time() - start


if __name__ == "__main__":
    main()
