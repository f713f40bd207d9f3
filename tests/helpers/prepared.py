"""Small prepared data sets, as others write them."""

import json
from pathlib import Path

import numpy as np
from image_files import encode, photo
from PIL import Image


def cifar10(root: Path) -> None:
    """Four training images and two others of two classes, in CIFAR-10's binary files."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "batches.meta.txt").write_bytes(b"cat\ndog\n")
    for i, file in enumerate(("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin")):
        pixels = np.random.default_rng(i).integers(0, 256, 2 * 3072, dtype=np.uint8).reshape(2, 3072)
        (root / file).write_bytes(b"".join(bytes([j]) + row.tobytes() for j, row in enumerate(pixels)))


def parquet(root: Path) -> None:
    """Hugging Face's form: a photograph, and a row without an image."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": encode(photo()), "path": None}, None]
    table = pa.table({"image": rows, "label": [1, 0]})
    described = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
    (root / "data").mkdir(parents=True)
    pq.write_table(table, root / "data" / "train-00000-of-00001.parquet")


def tfds(root: Path) -> None:
    """Twelve grey images as the TFDS data set "shapes" in array_record; record 5 of train is no image."""
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / "shapes" / "1.0.0"
    folder.mkdir(parents=True)
    splits = []
    for split, count in (("train", 12), ("test", 4)):
        writer = array_record_module.ArrayRecordWriter(
            str(folder / f"shapes-{split}.array_record-00000-of-00001"), "group_size:1"
        )
        for i in range(count):
            example = tf_example_pb2.Example()
            image = encode(Image.new("L", (6, 5), 10 * i))
            broken = split == "train" and i == 5
            example.features.feature["image"].bytes_list.value.append(b"no image" if broken else image)
            example.features.feature["label"].int64_list.value.append(i % 2)
            writer.write(example.SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append(
            {"name": split, "shardLengths": [str(count)], "numBytes": "1000", "filepathTemplate": template}
        )
    module = "tensorflow_datasets.core.features"
    features = {
        "image": {
            "pythonClassName": f"{module}.image_feature.Image",
            "image": {"shape": {"dimensions": ["5", "6", "1"]}, "dtype": "uint8"},
        },
        "label": {
            "pythonClassName": f"{module}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "2"},
        },
    }
    tree = {"pythonClassName": f"{module}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    info = {"name": "shapes", "version": "1.0.0", "fileFormat": "array_record", "splits": splits}
    (folder / "features.json").write_text(json.dumps(tree))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "label.labels.txt").write_text("even\nodd\n")
