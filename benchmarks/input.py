"""Images a CPU-second of the input pipeline, stage by stage and beside its peers, all measured in one run.

    PYTHONPATH=. python benchmarks/input.py            # table
    PYTHONPATH=. python benchmarks/input.py --json

The JPEGs are crops of scikit-learn's two sample photographs, resized to 500x375 and 500x333 and saved with
4:2:0 colour at qualities 85 to 95; the same bytes in every run. Everything runs on one core: seconds are CPU
seconds of this process and its children, so that other load on the machine matters less. Each contender takes
its turn in each round, and its figure is the best round. timm is measured as its users run it: a DataLoader
with one worker, Pillow, bicubic. Where torch, timm or TensorFlow are not installed their rows are left out.

Results: benchmarks/results/input.md.
"""

import argparse
import io
import json
import math
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data import loader, resize, transforms
from vit_jax.data.decode import Encoded
from vit_jax.data.source import File, Source
from vit_jax.sections import Data

IMAGE_HW = (224, 224)
BATCH = 64
TRAIN = dict(augment="inception", min_area=0.08, filter="pil_bicubic", threads=0)
EVAL = dict(resize="crop", crop_fraction=0.875, filter="pil_bicubic", threads=0)


def photos(count: int, seed: int = 0) -> list[bytes]:
    """JPEG files of 500x375 and 500x333 pixels, about 50 kB each; a pure function of the arguments."""
    from sklearn.datasets import load_sample_images

    bases = [Image.fromarray(photo) for photo in load_sample_images().images]
    rng = np.random.default_rng(seed)
    files = []
    for i in range(count):
        w, h = (500, 375) if i % 3 else (500, 333)
        cut_w = int(rng.integers(420, 560))
        cut_h = cut_w * h // w
        left, top = int(rng.integers(640 - cut_w + 1)), int(rng.integers(427 - cut_h + 1))
        image = (
            bases[i % 2].crop((left, top, left + cut_w, top + cut_h)).resize((w, h), Image.Resampling.BICUBIC)
        )
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(85, 96)), subsampling=2)
        files.append(file.getvalue())
    return files


class Jpegs(Source):
    """A source over files in memory."""

    class_names = ("photo",)

    def __init__(self, files: Sequence[bytes]) -> None:
        self.encoded = files

    @property
    def size(self) -> int:
        """The number of files."""
        return len(self.encoded)

    def get(self, index: int) -> tuple[Encoded, int]:
        """Example `index`, label 0."""
        return Encoded(self.encoded[index], f"photo {index}"), 0

    def files(self) -> list[File]:
        """None: they were made for this benchmark."""
        return []


def ours(files: Sequence[bytes], *, train: bool, resizer: str) -> Callable[[], int]:
    """One pass through the loader, in this thread."""
    source = Jpegs(files)
    cfg = Data(resizer=resizer, **(TRAIN if train else EVAL))  # type: ignore[arg-type]
    steps = len(files) // BATCH

    def run() -> int:
        batches = (
            loader.TrainBatches(source, cfg, IMAGE_HW, BATCH, 0, steps, range(BATCH))
            if train
            else loader.EvalBatches(source, cfg, IMAGE_HW, BATCH, range(BATCH))
        )
        return sum(len(batch.image) for batch in loader.iterate(batches, cfg))

    return run


def timm(files: Sequence[bytes], *, train: bool) -> Callable[[], int] | None:
    """One pass through timm's loader with one worker process; None if it is not installed."""
    try:
        import torch

        from benchmarks.peers import timm_loader
    except ImportError:
        return None
    torch.set_num_threads(1)
    made = timm_loader.loader(files, train=train, batch_size=BATCH, workers=1)
    return lambda: sum(len(images) for images, _ in made)


def tf_data(files: Sequence[bytes], *, train: bool) -> Callable[[], int] | None:
    """One pass through tf.data as big_vision has it: no antialiasing; None without TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError:
        return None
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def train_image(data: Any) -> Any:
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data), tf.zeros([0, 0, 4]), area_range=(0.08, 1.0),
            min_object_covered=0, use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        (top, left, _), (height, width, _) = tf.unstack(begin), tf.unstack(size)
        image = tf.image.decode_and_crop_jpeg(data, tf.stack([top, left, height, width]), channels=3)
        return tf.image.random_flip_left_right(tf.cast(tf.image.resize(image, IMAGE_HW), tf.uint8))

    def eval_image(data: Any) -> Any:
        image = tf.image.decode_jpeg(data, channels=3)
        shape = tf.cast(tf.shape(image)[:2], tf.float32)
        size = tf.cast(tf.round(shape * (256.0 / tf.reduce_min(shape))), tf.int32)
        image = tf.cast(tf.image.resize(image, size), tf.uint8)
        return tf.image.resize_with_crop_or_pad(image, *IMAGE_HW)

    def run() -> int:
        made = (
            tf.data.Dataset.from_tensor_slices(list(files))
            .map(train_image if train else eval_image)
            .batch(BATCH)
        )
        options = tf.data.Options()
        options.threading.private_threadpool_size = 1
        return sum(len(images) for images in made.with_options(options).as_numpy_iterator())

    return run


def cpu_seconds() -> float:
    """User and system time of this process and of its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def race(contenders: dict[str, Callable[[], int] | None], rounds: int) -> dict[str, float]:
    """Images a CPU-second of each contender: the best of `rounds`, taken in turns."""
    best = {name: 0.0 for name, run in contenders.items() if run is not None}
    for _ in range(rounds):
        for name in best:
            run = contenders[name]
            assert run is not None
            start = cpu_seconds()
            images = run()
            best[name] = max(best[name], images / (cpu_seconds() - start))
    return best


def stages(files: Sequence[bytes]) -> dict[str, Callable[[], int]]:
    """The parts of the training transform apart, ours and Pillow's."""
    encoded = [Encoded(data, "photo") for data in files]
    cfg = Data(resizer="close", **TRAIN)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    boxes = [transforms.inception_box((e.size_hw[1], e.size_hw[0]), 0.08, rng) for e in encoded]
    whole = [e.pixels(3) for e in encoded]
    crops = [a[box[1] : box[3], box[0] : box[2]] for a, box in zip(whole, boxes, strict=True)]
    pillow = [Image.fromarray(crop) for crop in crops]
    small = [resize.resize(c, IMAGE_HW, filter="pil_bicubic", exact=False) for c in crops]
    batch = np.empty((len(files), *IMAGE_HW, 3), np.uint8)

    def each(run: Callable[..., Any], *columns: Sequence[Any]) -> Callable[[], int]:
        return lambda: sum(run(*row) is not None for row in zip(*columns, strict=True))

    def augment(image_hwc: np.ndarray) -> np.ndarray:
        for operation in transforms.operations(cfg):
            image_hwc = operation(image_hwc, rng)
        return image_hwc

    def copy(i: int) -> bool:
        loader.copy_pixels(batch[i], small[i] if i % 2 else small[i][:, ::-1])
        return True

    def cubic(image: Image.Image) -> Image.Image:
        return image.resize(IMAGE_HW, Image.Resampling.BICUBIC)

    return {
        "decode, Pillow": each(lambda data: Image.open(io.BytesIO(data)).convert("RGB"), files),
        "decode, whole": each(lambda data: Encoded(data, "").pixels(3), files),
        "decode, rows above the crop's end": each(
            lambda d, b: Encoded(d, "").pixels(3, bottom=b[3]), files, boxes
        ),
        "decode, fast": each(lambda d, b: Encoded(d, "").pixels(3, bottom=b[3], quick=True), files, boxes),
        "resize bicubic, Pillow": each(cubic, pillow),
        "resize bicubic, close": each(
            lambda a: resize.resize(a, IMAGE_HW, filter="pil_bicubic", exact=False), crops
        ),
        "draw a crop": each(lambda e: transforms.inception_box(e.size_hw[::-1], 0.08, rng), encoded),
        "flip": each(augment, small),
        "copy into the batch": each(copy, range(len(files))),
    }


def difference(files: Sequence[bytes], *, train: bool, resizer: str) -> float:
    """Mean absolute difference, in grey levels, to Pillow's own decoder and bicubic filter."""
    cfgs = [Data(resizer=r, **(TRAIN if train else EVAL)) for r in (resizer, "exact")]  # type: ignore[arg-type]

    def image(cfg: Data, index: int) -> np.ndarray:
        picture = Encoded(files[index], "photo")
        if train:
            return transforms.inception_crop(picture, cfg, IMAGE_HW, np.random.default_rng(index)).astype(int)
        return transforms.for_evaluation(picture, cfg, IMAGE_HW).astype(int)

    return float(np.mean([np.abs(image(cfgs[0], i) - image(cfgs[1], i)).mean() for i in range(len(files))]))


def measure(count: int, rounds: int) -> Iterator[dict[str, Any]]:
    """One row a contender and a stage."""
    files = photos(count)
    timm_speeds = {}
    for train in (True, False):
        kind = "train" if train else "eval"
        modes = ("exact", "close", "fast") if train else ("exact", "close")
        contenders: dict[str, Callable[[], int] | None] = {"timm, Pillow": timm(files, train=train)}
        contenders |= {f"vit_jax, {m}": ours(files, train=train, resizer=m) for m in modes}
        speeds = race(contenders, rounds)
        for name, speed in speeds.items():
            mode = name.rpartition(" ")[2]
            levels = difference(files[:64], train=train, resizer=mode) if mode in modes else None
            timm_speeds[train] = speeds.get("timm, Pillow", math.nan)
            ratio = speed / timm_speeds[train]
            yield dict(part=kind, name=name, images_per_cpu_s=speed, ratio_to_timm=ratio, grey_levels=levels)
    # TensorFlow is loaded last: timm's workers would have to copy its memory when they start.
    tensorflow = {kind: tf_data(files, train=kind == "train") for kind in ("train", "eval")}
    for kind, speed in race(dict(tensorflow), rounds).items():
        ratio = speed / timm_speeds[kind == "train"]
        yield dict(
            part=kind, name="tf.data, bilinear, no antialiasing", images_per_cpu_s=speed, ratio_to_timm=ratio,
            grey_levels=None,
        )  # fmt: skip
    for name, speed in race(dict(stages(files)), rounds).items():
        yield dict(part="stage", name=name, images_per_cpu_s=speed, ratio_to_timm=None, grey_levels=None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=512, help="JPEGs a pass (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns of each contender (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one object a row")
    args = parser.parse_args()
    if not args.json:
        print(f"{'part':6}{'name':36}{'images/CPU-s':>13}{'ms':>8}{'to timm':>9}{'levels':>8}")
    for row in measure(args.images, args.rounds):
        if args.json:
            print(json.dumps(row), flush=True)
            continue
        ratio = "" if row["ratio_to_timm"] is None else f"{row['ratio_to_timm']:.2f}"
        levels = "" if row["grey_levels"] is None else f"{row['grey_levels']:.2f}"
        speed = row["images_per_cpu_s"]
        print(
            f"{row['part']:6}{row['name']:36}{speed:13.0f}{1000 / speed:8.3f}{ratio:>9}{levels:>8}",
            flush=True,
        )


if __name__ == "__main__":
    main()
