"""The table of published checkpoints, with the accuracy that their authors, or a named other, report.

Sources: O README of google-research/vision_transformer, T results table of timm, measured on the same file,
B the config of google-research/big_vision. ImageNet top-1 in percent; None where the file is for fine-tuning
or no figure for this very file is known. The files of the AugReg study are read by their own names as well.
"""

import difflib
import functools
import gzip
import importlib.resources
import re
from typing import NamedTuple

VIT = "gs://vit_models"
MIXER = "gs://mixer_models"
NEAREST = 4  # names in a message


class Published(NamedTuple):
    """One checkpoint."""

    url: str
    variant: str
    classes: int
    image_size: int
    top1: float | None = None
    source: str = ""


def find(name: str) -> Published | None:
    """The checkpoint of a name in the table, of an address or file name that it has, or of an AugReg file."""
    by_file = name.rsplit("/", 1)[-1].removesuffix(".npz")
    if name in TABLE:
        return TABLE[name]
    for published in TABLE.values():
        if name == published.url or name.removesuffix(".npz") == published.url.removesuffix(".npz"):
            return published
    match = AUGREG.fullmatch(by_file)
    return _augreg(by_file, match) if match else None


def nearest(name: str) -> list[str]:
    """The names in the table that look most like `name`, whole or after the slash."""
    name, last = name.casefold(), {known.casefold().rpartition("/")[2]: known for known in reversed(TABLE)}
    whole = {known.casefold(): known for known in TABLE}
    found = [
        names[match]
        for names in (whole, last)
        for match in difflib.get_close_matches(name, names, NEAREST, cutoff=0.5)
    ]
    return list(dict.fromkeys(found))[:NEAREST]


def class_names(published: Published | None, classes: int, *, imagenet: bool = False) -> tuple[str, ...]:
    """The names of a published head's classes; empty where the head is another or nobody knows.

    With `imagenet` 1,000 are known to be ImageNet's. 21,843 classes are told by their count: there is no
    other such set in use.
    """
    if classes == 21843:
        return _bundled("imagenet21k")
    known = classes == 1000 and (imagenet or (published is not None and published.classes == classes))
    return _bundled("imagenet1k") if known else ()


@functools.cache
def _bundled(name: str) -> tuple[str, ...]:
    packed = importlib.resources.files("vit_jax.weights").joinpath(f"classes/{name}.txt.gz").read_bytes()
    return tuple(gzip.decompress(packed).decode().splitlines())


AUGREG = re.compile(
    r"(?P<model>Ti_16|S_32|S_16|B_32|B_16|B_8|L_16|R_Ti_16|R26_S_32|R50_L_32)-(?P<ds>i1k|i21k)-\d+ep-lr_[\d.]+"
    r"-aug_\w+-wd_[\d.]+-do_[\d.]+-sd_[\d.]+(--(?P<adapt>\w+)-steps_\d+k-lr_[\d.]+-res_(?P<res>\d+))?"
)
ADAPTED = {"imagenet2012": 1000, "cifar100": 100, "oxford_iiit_pet": 37, "resisc45": 45, "kitti": 4}


def _augreg(name: str, match: re.Match[str]) -> Published:
    upstream = {"i1k": 1000, "i21k": 21843}[match["ds"]]
    classes = ADAPTED.get(match["adapt"], 0) if match["adapt"] else upstream
    return Published(f"{VIT}/augreg/{name}.npz", _variant(match["model"]), classes, int(match["res"] or 224))


def _variant(name: str) -> str:
    """`R26+S/32` of `R26_S_32`, `B/16` of `ViT-B_16`, `Mixer-B/16` of `Mixer-B_16`."""
    *sizes, patch = name.replace("ViT-", "").replace("+", "_").split("_")
    return f"{'+'.join(sizes)}/{patch}"


# The recommended checkpoints of the AugReg study: the upstream file, the learning rate of its fine-tuning on
# ImageNet at 384 and the accuracy that this reached [O].
RECOMMENDED = {
    "L_16": ("aug_strong1-wd_0.1-do_0.0-sd_0.0", "0.01", 85.59),
    "B_16": ("aug_medium1-wd_0.1-do_0.0-sd_0.0", "0.03", 85.49),
    "S_16": ("aug_light1-wd_0.03-do_0.0-sd_0.0", "0.03", 83.73),
    "R50_L_32": ("aug_medium1-wd_0.1-do_0.1-sd_0.1", "0.01", 85.99),
    "R26_S_32": ("aug_light1-wd_0.1-do_0.0-sd_0.0", "0.01", 83.85),
    "Ti_16": ("aug_none-wd_0.03-do_0.0-sd_0.0", "0.03", 78.22),
    "B_32": ("aug_light1-wd_0.1-do_0.0-sd_0.0", "0.01", 83.59),
    "S_32": ("aug_none-wd_0.1-do_0.0-sd_0.0", "0.01", 79.58),
    "R_Ti_16": ("aug_none-wd_0.03-do_0.0-sd_0.0", "0.03", 75.40),
}


def _table() -> dict[str, Published]:
    out = {}
    for model, (recipe, lr, top1) in RECOMMENDED.items():
        url, variant = f"{VIT}/augreg/{model}-i21k-300ep-lr_0.001-{recipe}", _variant(model)
        tuned = f"{url}--imagenet2012-steps_20k-lr_{lr}-res_384.npz"
        out[f"augreg/{model}"] = Published(f"{url}.npz", variant, 21843, 224)
        out[f"augreg/{model}-384"] = Published(tuned, variant, 1000, 384, top1, "O")
    for model in ("ViT-B_16", "ViT-B_32", "ViT-L_16", "ViT-L_32", "ViT-H_14", "R50+ViT-B_16"):
        out[f"imagenet21k/{model}"] = Published(f"{VIT}/imagenet21k/{model}.npz", _variant(model), 21843, 224)
    for model, size, top1 in (
        *((model, 384, None) for model in ("ViT-B_16", "ViT-B_32", "ViT-L_16", "ViT-L_32", "R50+ViT-B_16")),
        *(("ViT-B_16-224", 224, 81.2), ("ViT-L_16-224", 224, 82.7)),
    ):
        url = f"{VIT}/imagenet21k+imagenet2012/{model}.npz"
        variant = _variant(model.removesuffix("-224"))
        out[f"imagenet21k+imagenet2012/{model}"] = Published(
            url, variant, 1000, size, top1, "O" if top1 else ""
        )
    for model, top1 in (("ViT-B_16", 80.25), ("ViT-B_32", 73.70)):
        out[f"sam/{model}"] = Published(f"{VIT}/sam/{model}.npz", _variant(model), 1000, 224, top1, "T")
    for data, model, classes in (
        *(("imagenet1k", "Mixer-B_16", 1000), ("imagenet1k", "Mixer-L_16", 1000)),
        *(("imagenet21k", "Mixer-B_16", 21843), ("imagenet21k", "Mixer-L_16", 21843)),
    ):
        out[f"{data}/{model}"] = Published(f"{MIXER}/{data}/{model}.npz", _variant(model), classes, 224)
    # Only the 90 epochs have their figure in the config's text.
    for epochs, top1 in ((90, 76.5), (150, None), (300, None)):
        url = f"gs://big_vision/vit_s16_i1k_{epochs}ep.npz"
        out[f"big_vision/vit_s16_i1k_{epochs}ep"] = Published(
            url, "S/16", 1000, 224, top1, "B" if top1 else ""
        )
    return out


TABLE = _table()
SHELVES = {name.partition("/")[0] for name in TABLE}  # what stands before the slash of the table's names
