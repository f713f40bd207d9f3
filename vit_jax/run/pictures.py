"""Pictures of a run for the sinks that show them."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vit_jax.data.source import class_name
from vit_jax.patches import Patches, joined

MOST = 64  # images of a batch that are shown
NUMBERED = 30  # most classes of a confusion with names and counts
CELL_PX, NAME_PX = 36, 120  # of such a one: a cell's side, and the width of a name
SIDE_PX = 600  # of a confusion of more classes, about
LETTERS = 18  # of a name that fit
FULL = np.array([8, 48, 107])  # the colour of all examples of a class: dark blue; of none: white


def tiled(images: np.ndarray | Patches) -> np.ndarray:
    """uint8 images [b, h, w, c] side by side in a square, row by row: [rows * h, columns * w, 1 or 3].

    Images of their own aspect each have room for the highest and the widest. Of two channels the first is
    shown, of more than three the first three.
    """
    image_bhwc = _padded(images) if isinstance(images, Patches) else images
    image_bhwc = image_bhwc[:MOST, ..., : 3 if image_bhwc.shape[-1] >= 3 else 1]
    b, h, w, c = image_bhwc.shape
    columns = int(np.ceil(np.sqrt(b)))
    rows = -(-b // columns)
    padded = np.zeros((rows * columns, h, w, c), np.uint8)
    padded[:b] = image_bhwc
    return padded.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)


def _padded(patches: Patches) -> np.ndarray:
    images = [joined(patches, row) for row in range(min(len(patches.grid), MOST))]
    h, w = (max(image.shape[axis] for image in images) for axis in (0, 1))
    return np.stack([np.pad(x, ((0, h - x.shape[0]), (0, w - x.shape[1]), (0, 0))) for x in images])


def confused(counts_cc: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """uint8 [h, w, 3]: a row per true class, a column per predicted one in the same order, darker for more.

    Up to NUMBERED classes have their names on the left, or numbers, and the counts in the cells.
    """
    c, counts_cc = len(counts_cc), np.asarray(counts_cc, np.float64)
    share_cc = counts_cc / np.maximum(counts_cc.sum(axis=1, keepdims=True), 1)
    colour_ccr = (255 + share_cc[..., None] * (FULL - 255)).round().astype(np.uint8)
    side = CELL_PX if c <= NUMBERED else max(1, SIDE_PX // c)
    cells_hwr = colour_ccr.repeat(side, axis=0).repeat(side, axis=1)
    if c > NUMBERED:
        return cells_hwr
    image = Image.new("RGB", (NAME_PX + c * side, c * side), "white")
    image.paste(Image.fromarray(cells_hwr), (NAME_PX, 0))
    draw = ImageDraw.Draw(image)
    for i in range(c):
        draw.text((NAME_PX - 4, (i + 0.5) * side), class_name(names, i)[:LETTERS], "black", anchor="rm")
        for j in np.flatnonzero(counts_cc[i]):
            at = (NAME_PX + (j + 0.5) * side, (i + 0.5) * side)
            draw.text(at, f"{counts_cc[i, j]:.0f}", "white" if share_cc[i, j] > 0.5 else "black", anchor="mm")
    return np.asarray(image)
