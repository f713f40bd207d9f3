"""Pictures of a run for the sinks that show them."""

import numpy as np

MOST = 64  # images of a batch that are shown


def tiled(image_bhwc: np.ndarray) -> np.ndarray:
    """uint8 images [b, h, w, c] side by side in a square, row by row: [rows * h, columns * w, 1 or 3].

    Of two channels the first is shown, of more than three the first three.
    """
    image_bhwc = image_bhwc[:MOST, ..., : 3 if image_bhwc.shape[-1] >= 3 else 1]
    b, h, w, c = image_bhwc.shape
    columns = int(np.ceil(np.sqrt(b)))
    rows = -(-b // columns)
    padded = np.zeros((rows * columns, h, w, c), np.uint8)
    padded[:b] = image_bhwc
    return padded.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
