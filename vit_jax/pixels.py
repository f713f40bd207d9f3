"""Means and standard deviations of pixels from 0 to 1, by which published models normalise their images."""

from typing import Any

# Any: as keywords beside others of other types
HALF: Any = {"mean": (0.5,), "std": (0.5,)}  # to between -1 and 1
IMAGENET: Any = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP: Any = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
