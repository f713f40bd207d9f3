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


def _table(images, labels, names):
    """The table of Hugging Face's: images as bytes and path, labels as they are, or numbers of `names`."""
    import pyarrow as pa

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = [image and {"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    several = any(isinstance(label, list) for label in labels)
    column = "labels" if several else "label"
    table = pa.table({"image": pa.array(cells, kind), column: pa.array(labels)})
    of_one = {"names": list(names), "_type": "ClassLabel"} if names else {"dtype": "string", "_type": "Value"}
    feature = {"feature": of_one, "_type": "List"} if several else of_one
    described = {"info": {"features": {"image": {"_type": "Image"}, column: feature}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(described)})


def hub_parquet(root: Path, split: str, images, labels, names) -> None:
    """One split in Hugging Face's parquet form."""
    import pyarrow.parquet as pq

    (root / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(_table(images, labels, names), root / "data" / f"{split}-00000-of-00001.parquet")


def saved_to_disk(folder: Path, images, labels, names=(), *, shards: int = 1) -> None:
    """A Dataset as `save_to_disk` of Hugging Face's datasets 5.2 lays it out."""
    import pyarrow as pa

    folder.mkdir(parents=True, exist_ok=True)
    table, files = _table(images, labels, names), []
    for i in range(shards):
        files.append({"filename": f"data-{i:05}-of-{shards:05}.arrow"})
        first, last = (len(images) * at // shards for at in (i, i + 1))
        with pa.ipc.new_stream(str(folder / files[-1]["filename"]), table.schema) as stream:
            stream.write_table(table.slice(first, last - first))
    state = {"_data_files": files, "_fingerprint": "9fc9500f8fdb5305", "_format_type": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": {}}))
