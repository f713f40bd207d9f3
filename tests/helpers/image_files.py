"""Images in their file formats, for tests of what reads them."""

import io

from PIL import Image
from sklearn.datasets import load_sample_images


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """The bytes of a file of format `kind`."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(width: int = 96, height: int = 80) -> Image.Image:
    """A real photograph, RGB."""
    return Image.fromarray(load_sample_images().images[1]).resize((width, height))
