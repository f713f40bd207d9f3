"""What `demo` answers of one picture: its classes, where the model looked, and the nearest known images.

Dims: n known images, d features, h heads, m tokens, y x patch grid.
"""

import base64
import dataclasses
import functools
import io
import threading
from typing import Any

import jax
import numpy as np
from PIL import Image

from vit_jax import paths
from vit_jax.analysis import attention, probes
from vit_jax.cli.attention import overlays
from vit_jax.cli.common import PANEL_PX
from vit_jax.cli.embed import Embedded
from vit_jax.data import sources, transforms
from vit_jax.data.decode import open_pillow
from vit_jax.errors import UserError
from vit_jax.loaded import Loaded
from vit_jax.sections import Spec
from vit_jax.training.step import normalise

NEAREST = 6  # images shown
# Of their length: in batches of other sizes features of one model differ by roundings, those of bfloat16 by
# a percent. Another model's are as far away as they are long.
SAME_MODEL = 0.05


@dataclasses.dataclass(frozen=True)
class Near:
    """Known images: their files, unit features float32 [n, d], and the block and pooling that made them."""

    names: list[str]
    unit_nd: np.ndarray
    layer: int
    pool: Any

    def of(self, loaded: Loaded, image: Image.Image) -> list[dict[str, Any]]:
        """The nearest by cosine similarity: `number` is the row in the file of features."""
        similarity_n = (
            self.unit_nd @ probes.unit(loaded.features([image], layer=self.layer, pool=self.pool))[0]
        )
        best = np.argsort(-similarity_n, kind="stable")[:NEAREST]
        return [{"path": self.names[i], "number": int(i), "similarity": float(similarity_n[i])} for i in best]

    def picture(self, number: int) -> bytes:
        """A PNG of a known image, no larger than a panel. Raises UserError for one that cannot be read."""
        image = sources.read_image(paths.of(self.names[number]))
        image.thumbnail((PANEL_PX, PANEL_PX))
        return png(image)


def near(loaded: Loaded, found: Embedded, file: str) -> Near:
    """What `embed` wrote to `file`. Raises UserError unless `loaded` made it, of images that can be read."""
    layer, pool, features_nd = found.about["layer"], found.about["pool"], found.features
    if features_nd.ndim != 2:
        raise UserError(f"{file} has features of every token: make it without --pool none")
    if not len(features_nd):
        raise UserError(f"{file} has no images")
    try:
        first = sources.read_image(paths.of(found.paths[0]))
    except UserError as e:
        raise UserError(f"{file} names images that are not here ({e}): start where embed was started") from e
    of_first = loaded.features([first], layer=layer, pool=pool)[0]
    same = of_first.shape == features_nd[0].shape and (
        np.linalg.norm(of_first - features_nd[0]) <= SAME_MODEL * np.linalg.norm(of_first)
    )
    if not same:
        raise UserError(f"{file} was made by another model, {found.about['ref']}: run embed with this one")
    return Near(found.paths, probes.unit(features_nd), layer, pool)


@dataclasses.dataclass(frozen=True)
class Answers:
    """`answers(bytes of an image file)`: what the page shows, as JSON has it. For several threads."""

    loaded: Loaded
    near: Near | None = None
    _one: threading.Lock = dataclasses.field(default_factory=threading.Lock)  # image at a time in memory

    def __call__(self, data: bytes) -> dict[str, Any]:
        """Classes, the set of them if there may be several, pictures of attention, nearest images.

        Raises UserError for what is no image.
        """
        image, loaded = open_pillow(data, "the file"), self.loaded
        with self._one:
            rows = self.classes(image)
            answer = {"loss": loaded.spec.loss, "classes": rows, "attention": self.attention(image)}
            if loaded.spec.multi_label:
                (held,) = loaded.classify([image])
                answer["set"] = [found.name for found in held]
            if self.near:
                answer["near"] = self.near.of(loaded, image)
        return answer

    def classes(self, image: Image.Image) -> list[dict[str, Any]]:
        """The likeliest classes, as `predict --json` has them."""
        (best,) = self.loaded.classify([image], top=5)
        return [{"class": p.name, "index": p.index, "confidence": p.confidence} for p in best]

    def attention(self, image: Image.Image) -> list[dict[str, str]]:
        """Titles and PNGs: what it sees, the last block's mean over heads, and rollout.

        An empty list for a Mixer, and for images of their own aspect, each of which would need a compilation.
        """
        spec = self.loaded.spec
        if spec.model.family != "vit" or spec.preprocess.resize == "native":
            return []
        seen_hwc = transforms.for_evaluation(image, spec.preprocess, spec.model.image_hw)
        looked_hm, rollout_m = jax.device_get(_look(spec, self.loaded.params, seen_hwc[None]))
        grids = attention.to_grid(np.stack([looked_hm.mean(axis=0), rollout_m]), spec.model)
        titles = ("as the model sees it", "attention of the last block", "attention rollout")
        panels = overlays(seen_hwc, grids)
        return [{"title": t, "png": _url(png(panel))} for t, panel in zip(titles, panels, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def _look(spec: Spec, params: Any, image_bhwc: Any) -> tuple[jax.Array, jax.Array]:
    """What the pooled features of the first image look at: [h, m] in the last block, [m] through all."""
    cfg = spec.model
    maps = attention.capture(cfg, params, normalise(image_bhwc, spec.preprocess), every=False)
    return attention.looked_at(maps, cfg), attention.readout(maps.rollout[0], cfg)


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):  # such as CMYK or floats
        image = image.convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
