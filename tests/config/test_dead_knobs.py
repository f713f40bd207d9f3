"""No field of data, optim, loss and train is dead: another value changes what a run does.

Those of the model are tested with the modules. Fields with a set of choices must do something else for each
of them. A new field fails here until one of the tables says what it changes.
"""

import dataclasses
import functools
import json
import os
import threading
import typing

import jax
import pytest
from image_files import encode, photo
from paths import ROOT
from tiny_run import tiny

from vit_jax import config, fields
from vit_jax.data import loader, sources
from vit_jax.data.source import Source, Splits
from vit_jax.models import build
from vit_jax.patches import Native
from vit_jax.run import loop
from vit_jax.run.setup import set_up
from vit_jax.sections import Config
from vit_jax.weights.adapt import Weights
from vit_jax.weights.formats import orbax
from vit_jax.weights.report import Report

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")

SECTIONS = ("data", "optim", "loss", "train")
FIELDS = {name: f for name, f in fields.leaves(Config).items() if name.partition(".")[0] in SECTIONS}
TEACHER, RANDAUG = {"loss.teacher": "nowhere.npz"}, {"data.policy": "randaug"}

# Fields of a base, on top of a tiny run, in which the field has a meaning, and another value of it. Choices
# need no value: all of them are tried.
# What a field changes: the lowered program of a step, or the number of steps.
IN_THE_STEP = {
    "data.channels": ({}, 3),
    "data.mean": ({}, (0.4,)),
    "data.std": ({}, (0.4,)),
    "optim.name": ({},),
    "optim.lr": ({}, 2e-3),
    "optim.schedule": ({},),
    "optim.warmup_steps": ({}, 7),
    "optim.cooldown_steps": ({}, 7),
    "optim.timescale_steps": ({"optim.schedule": "rsqrt"}, 100),
    "optim.momentum": ({"optim.name": "sgd"}, 0.8),
    "optim.momentum_dtype": ({},),
    "optim.beta1": ({}, 0.8),
    "optim.beta2": ({}, 0.99),
    "optim.eps": ({}, 1e-6),
    "optim.weight_decay": ({}, 0.1),
    "optim.decayed": ({}, ("bias$",)),
    "optim.layer_decay": ({}, 0.5),
    "optim.trained": ({}, ("^head",)),
    "optim.frozen": ({}, ("^embed",)),
    "optim.clip_norm": ({}, 2.0),
    "optim.lora_rank": ({"init": "weights", "optim.lora_rank": 1}, 2),
    "optim.lora_alpha": ({"init": "weights", "optim.lora_rank": 1}, 2.0),
    "optim.lora_kernels": ({"init": "weights", "optim.lora_rank": 1}, ("attention",)),
    "optim.sam_rho": ({}, 0.1),
    "optim.ema": ({}, 0.9),
    "loss.name": ({},),
    "loss.class_weights": ({}, "balanced"),
    "loss.label_smoothing": ({}, 0.1),
    "loss.mixup": ({}, 0.2),
    "loss.cutmix": ({}, 0.2),
    "loss.distill": (TEACHER,),
    "loss.distill_weight": (TEACHER, 0.3),
    "loss.temperature": (TEACHER | {"loss.distill": "soft"}, 2.0),
    "train.steps": ({}, 70),
    "train.epochs": ({"train.steps": 0, "train.epochs": 1.0}, 2.0),
    "train.batch_size": ({}, 64),
    "train.log_every": ({}, 5),
    "train.max_skipped": ({}, 3),
    "train.spike": ({}, 3.0),
    "train.micro_batches": ({}, 2),
    "train.patch_sizes": ({}, (2, 8)),
    "train.scan": ({}, True),
    "train.remat": ({},),
}
# The pixels, labels and weights of batches from a folder of photographs.
IN_THE_BATCHES = {
    "data.resize": ({"data.augment": "none"},),
    "data.max_tokens": ({"data.resize": "native"}, 3),
    "data.crop_fraction": ({"data.resize": "crop"}, 0.5),
    "data.filter": ({},),
    "data.resizer": ({},),
    "data.name": ({}, "digits"),
    "data.dir": ({}, "b"),
    "data.train_split": ({}, "other"),
    "data.eval_split": ({}, "test"),
    "data.balance": ({}, True),
    "data.augment": ({"data.resize": "crop"},),
    "data.pad_px": ({"data.augment": "pad"}, 3),
    "data.min_area": ({}, 0.9),
    "data.flip": ({}, False),
    "data.policy": ({},),
    "data.randaug_layers": (RANDAUG, 1),
    "data.randaug_magnitude": (RANDAUG, 20),
    "data.jitter": ({}, 0.5),
    "data.erase": ({}, 1.0),
    "data.repeats": ({}, 3),
}
# Whether examples are read by this process and this thread.
IN_THE_LOADER = {"data.workers": ({}, 1), "data.threads": ({}, 1)}
# Which steps of a short run are evaluated and kept, and in which batches it evaluates.
IN_THE_RUN = {
    "train.eval_batch_size": ({}, 64),
    "train.eval_every": ({}, 2),
    "train.checkpoint_every": ({}, 3),
    "train.keep": ({}, 1),
    "train.patience": ({"train.eval_every": 1, "train.best": "loss", "optim.lr": 1e-30}, 2),
}
# Fields that take files or much time, with the test that shows what they change.
OBSERVED_ELSEWHERE = {
    "data.held_out": "test_a_folder_keeps_a_tenth_of_each_class_and_added_files_move_few",
    "data.on_error": "test_skip_trains_on_without_broken_files_and_names_them",
    "data.cache_gib": "test_a_run_reads_its_files_once",
    "data.stage_dir": "test_a_tfds_data_set_is_copied_once_and_gives_the_same_examples",
    "loss.teacher": "test_a_file_can_be_the_teacher",
    "train.best": "test_the_best_is_that_of_the_metric_and_ties_keep_the_first",
    "train.sinks": "test_a_table_has_each_line_once_after_a_kill",
    "train.health": "test_training_has_the_same_bits_with_health_and_without",
    "train.profile_steps": "test_steps_are_profiled_into_the_folder_of_the_run",
    "train.stall_minutes": "test_no_limit_no_thread",
}
TABLES = (IN_THE_STEP, IN_THE_BATCHES, IN_THE_LOADER, IN_THE_RUN, OBSERVED_ELSEWHERE)


def configured(values, **train):
    tree = config.to_dict(tiny(**train))
    for name, value in values.items():
        section, dot, leaf = name.rpartition(".")
        (tree[section] if dot else tree)[leaf] = value
    return config.parse(tree)


def base_and_others(name, base, *value):
    """The values of the config without and with each other value of the field."""
    choices = typing.get_args(FIELDS[name].type)
    others = value or choices
    assert value or typing.get_origin(FIELDS[name].type) is typing.Literal, f"{name} needs another value"
    return ([base] if value else []) + [base | {name: other} for other in others]


def differ(observe, name, table):
    one_block = {"model.depth": 1}
    configs = [configured(one_block | values) for values in base_and_others(name, *table[name])]
    assert len(set(configs)) == len(configs) > 1
    assert len({str(observe(cfg)) for cfg in configs}) == len(configs)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_in_one_table(name):
    assert sum(name in table for table in TABLES) == 1, f"{name}: say in a table above what it changes"


def test_no_table_names_a_field_that_is_gone():
    assert {name for table in TABLES for name in table} == FIELDS.keys()


@pytest.fixture(scope="module")
def lowered(one_device):
    """The program of the step of a config, and the number of steps."""
    data = Splits(sources.digits(train=True), sources.digits(train=False))

    @functools.cache
    def lower(cfg):
        with jax.set_mesh(one_device):
            setup = set_up(cfg, one_device, data, teacher_of(cfg) if cfg.loss.teacher else None)
            return setup.steps, setup.lower_step().as_text()

    return lower


def teacher_of(cfg):
    model = dataclasses.replace(cfg.model, classes=10)
    options = {"image_hw": model.image_hw, "channels": cfg.data.channels}
    params = jax.eval_shape(lambda: build.init(build.build(model), jax.random.key(0), **options))
    return Weights(model, params, (), config.preprocess_of(cfg.data), Report("nowhere.npz", "official", 0))


@pytest.mark.long
@pytest.mark.parametrize("name", IN_THE_STEP)
def test_another_value_is_another_step(lowered, name):
    differ(lowered, name, IN_THE_STEP)


def test_a_config_lowers_to_one_program(lowered):
    cfg = configured({})
    again = lowered.__wrapped__(cfg)
    assert again == lowered(cfg)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Folders a and b, with splits of two photographs in each of two classes."""
    root = tmp_path_factory.mktemp("photos")
    picture = photo(200, 160)
    for i, (folder, split) in enumerate(
        [*(("a", s) for s in ("train", "other", "val", "test")), ("b", "train"), ("b", "val")]
    ):
        for j, label in enumerate(("x", "x", "y", "y")):
            path = root / folder / split / label / f"{j}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            left = 7 * i + 3 * j
            path.write_bytes(encode(picture.crop((left, j, left + 120, 100 + j)), "JPEG"))
    return root


def batches_of(cfg, root):
    """The bytes of two training batches and of an evaluation."""
    data = dataclasses.replace(cfg.data, dir=str(root / cfg.data.dir))
    train, evaluation = (sources.open_split(data, train=train) for train in (True, False))
    native = Native(8, data.max_tokens or 9) if data.resize == "native" else None
    hw, size = native or (24, 24), 4
    streams = (
        loader.TrainBatches(train, data, hw, size, 0, 2, range(size)),
        loader.EvalBatches(evaluation, data, hw, size, range(size)),
    )
    return [
        [x.tobytes() for x in jax.tree.leaves(batch)]
        for stream in streams
        for batch in (stream[i] for i in range(min(len(stream), 2)))
    ]


@pytest.mark.parametrize("name", IN_THE_BATCHES)
def test_another_value_makes_other_batches(photos, name):
    common = {"data.name": "folder", "data.dir": "a", "data.channels": 3, "data.augment": "inception"}
    base, *value = IN_THE_BATCHES[name]
    differ(lambda cfg: batches_of(cfg, photos), name, {name: (common | base, *value)})


class Who(Source):
    """A source whose examples say which process and which thread reads them."""

    size, class_names = 1, ("a",)

    def __init__(self):
        self.process, self.thread = os.getpid(), threading.get_native_id()

    def get(self, index):
        ids = os.getpid() == self.process, threading.get_native_id() == self.thread
        return photo(8, 8), ids[0] * 2 + ids[1]


@pytest.mark.parametrize("name", IN_THE_LOADER)
def test_another_value_reads_elsewhere(name):
    source = Who()

    def readers(cfg):
        batches = loader.TrainBatches(source, cfg.data, (8, 8), 1, 0, 1, range(1))
        return [batch.label.tolist() for batch in loader.iterate(batches, cfg.data)]

    differ(readers, name, {name: ({"data.threads": 0} | IN_THE_LOADER[name][0], *IN_THE_LOADER[name][1:])})


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The evaluated steps of a run of a config, its kept checkpoints, and the sizes of evaluation batches."""

    @functools.cache
    def watch(cfg):
        sizes, make = set(), loader.EvalBatches

        def made(*args):
            sizes.add((batches := make(*args)).batch_size)
            return batches

        workdir = tmp_path_factory.mktemp("run")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loader, "EvalBatches", made)
            loop.run(cfg, workdir)
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        evaluated = [line["step"] for line in lines if "eval/top1" in line]
        assert evaluated
        return evaluated, orbax.steps_in(workdir / "checkpoints"), sizes

    return watch


@pytest.mark.long
@pytest.mark.parametrize("name", IN_THE_RUN)
def test_another_value_is_another_run(watched, name):
    short = {
        "train.steps": 6,
        "train.eval_every": 0,
        "train.checkpoint_every": 2,
        "train.keep": 9,
    }
    base, *value = IN_THE_RUN[name]
    differ(watched, name, {name: (short | base, *value)})


@pytest.mark.parametrize("name", OBSERVED_ELSEWHERE)
def test_what_is_observed_elsewhere_has_its_test(name):
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    assert any(f"def {OBSERVED_ELSEWHERE[name]}(" in text for text in texts)
