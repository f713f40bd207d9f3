"""Health lines come on runs that were made sick on purpose, each with its part, and not on healthy ones."""

import dataclasses
import shutil

import numpy as np
import pytest
from event_files import events
from tiny_run import final_digests, tiny, untimed_metrics

import vit_jax
from vit_jax import config
from vit_jax.data import sources
from vit_jax.data.source import Splits
from vit_jax.run import health, loop
from vit_jax.run.health import mistakes, unusual

pytestmark = pytest.mark.usefixtures("optax_dtypes", "one_device")
# A small model of 16 tokens that learns the digits, measured at steps 50, 100, 150 and 200.
POOLED = {"class_token": False, "pooling": "gap"}
SMALL = {
    "model": {"patch_size": 2, "width": 32, "mlp_width": 64, "dropout": 0.0},
    "optim": {"lr": 3e-3, "warmup_steps": 20},
    "train": {"steps": 201, "batch_size": 64, "log_every": 50, "checkpoint_every": 999, "eval_every": 0},
}


def small(**sections):
    """The config of a small run with `train.health`, and with other values of some fields."""
    tree = config.to_dict(tiny())
    for values in (SMALL, {"train": {"health": True}}, sections):
        for section, fields in values.items():
            if isinstance(fields, dict):
                tree[section].update(fields)
            else:
                tree[section] = fields
    return config.parse(tree)


def said(cfg, folder, **options):
    """The health lines of a run, without their steps, and its metrics."""
    loop.run(cfg, folder, **options)
    lines = [line.split(": ", 1) for line in (folder / "log.txt").read_text().splitlines()]
    return [line[1] for line in lines if line[0].startswith("health at step")], untimed_metrics(folder)


@pytest.mark.slow
def test_a_rate_a_hundred_times_too_high_is_said(tmp_path):
    lines, _ = said(small(optim={"lr": 0.3}), tmp_path)
    assert any(line.startswith("norm: an update is of its weights a share of") for line in lines)
    assert any("lower optim.lr" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("qk_norm", [False, True])
def test_bfloat16_without_qk_norm_is_said_and_qk_norm_mends_it(tmp_path, qk_norm):
    model = {"dtype": "bfloat16", "qk_norm": qk_norm}
    lines, _ = said(small(model=model, optim={"lr": 5e-2}), tmp_path)
    large = [line for line in lines if "largest attention logit" in line]
    assert bool(large) != qk_norm
    assert all(line.startswith("block_") and "model.qk_norm=true" in line for line in large)


@pytest.mark.slow
def test_flipped_labels_are_said(tmp_path):
    train = sources.digits(train=True)
    rng = np.random.default_rng(0)
    noisy_n = np.where(rng.random(train.size) < 0.4, rng.integers(0, 10, train.size), train.labels())
    flipped = dataclasses.replace(train, labels_n=noisy_n.astype(np.int32))
    data = Splits(flipped, sources.digits(train=False))
    model = {"posemb": "sincos2d"} | POOLED  # learns in a few epochs
    (line,), _ = said(small(model=model, train={"steps": 401}), tmp_path, data=data)
    assert line.startswith("labels: training's mistakes are as random as guesses")
    assert "probe --suspects" in line


@pytest.mark.slow
def test_a_block_that_no_gradient_reaches_is_said(tmp_path):
    """Its LayerScale is 0 in the weights that the run begins with, and does not learn."""
    model, optim = {"layer_scale": 0.1}, {"warmup_steps": 0}
    short = small(model=model, optim=optim, train={"steps": 1, "health": False})
    begun = vit_jax.train(short, tmp_path / "begun").load()
    block = begun.params["block_1"]
    cut = {name: {"gamma": np.zeros_like(block[name]["gamma"])} for name in ("scale1", "scale2")}
    weights = dataclasses.replace(begun, params=begun.params | {"block_1": block | cut})
    vit_jax.save(tmp_path / "cut.safetensors", weights, dialect="timm")
    fields = {"init": str(tmp_path / "cut.safetensors"), "optim": {"frozen": ["scale"], "weight_decay": 0.1}}
    lines, metrics = said(small(model=model, **fields), tmp_path / "sick")
    assert {line.split(": ")[0] for line in lines} == {"block_1"}
    assert any("does not learn" in line and "optim.frozen" in line for line in lines)
    assert any("LayerScale" in line for line in lines)
    assert metrics[0]["health/update_ratio/block_1"] > 0  # weight decay moves it: the gradient tells


@pytest.mark.slow
def test_the_quickstart_is_healthy(tmp_path):
    fields = {"train.health": True, "train.epochs": 0.0, "train.steps": 301, "train.eval_every": 0}
    lines, metrics = said(vit_jax.config("configs/quickstart.py", fields), tmp_path)
    assert not lines
    assert sum("health/grad_norm/block_3" in row for row in metrics) == 6


@pytest.mark.slow
def test_a_scanned_run_in_bfloat16_with_layer_scale_is_healthy(tmp_path):
    model = {"dtype": "bfloat16", "qk_norm": True, "layer_scale": 1e-2, "depth": 3}
    train = {"scan": True, "remat": "full", "micro_batches": 2}
    lines, metrics = said(small(model=model, train=train, optim={"ema": 0.99}), tmp_path)
    assert not lines
    assert metrics[0]["health/dead_scales/block_2"] == 0
    assert 0 < metrics[0]["health/attention_entropy/block_2"] <= 1


@pytest.mark.slow
def test_a_mixer_from_a_checkpoint_is_healthy(tmp_path):
    model = {"family": "mixer", "token_width": 16, "heads": 1, "posemb": "none"} | POOLED
    first = small(model=model, train={"steps": 150, "health": False})
    vit_jax.train(first, tmp_path / "first")
    sgd = {"name": "sgd", "lr": 0.03, "clip_norm": 1.0}
    lines, metrics = said(small(model=model, init=str(tmp_path / "first"), optim=sgd), tmp_path / "second")
    assert not lines
    names = {name.split("/")[1] for row in metrics for name in row if name.startswith("health/")}
    assert {"grad_norm", "update_ratio", "dormant_units", "logit"} <= names
    assert not any("attention" in name or "scales" in name for name in names)


@pytest.mark.slow
def test_training_has_the_same_bits_with_health_and_without(tmp_path):
    """Also when it is stopped between two logs and continued."""
    model, train = {"depth": 1, "dropout": 0.1}, {"steps": 56, "log_every": 5, "checkpoint_every": 27}
    on, off = (small(model=model, train=train | {"health": health}) for health in (True, False))
    for name, cfg in (("on", on), ("off", off)):
        loop.run(cfg, tmp_path / name)
    assert final_digests(tmp_path / "on") == final_digests(tmp_path / "off")
    measured = untimed_metrics(tmp_path / "on")
    assert [row["step"] for row in measured if "health/logit/head" in row] == [50]
    bare = [{k: v for k, v in row.items() if not k.startswith("health/")} for row in measured]
    assert bare == untimed_metrics(tmp_path / "off")
    tags = [v.tag for e in events(tmp_path / "on" / "tensorboard") for v in e.summary.value]
    assert "health/grad_norm/block_0" in tags
    assert sum(tag.startswith("custom_scalars") for tag in tags) == 1
    for later in ("54", "56"):
        shutil.rmtree(tmp_path / "on" / "checkpoints" / later)
    loop.run(on, tmp_path / "on")
    assert untimed_metrics(tmp_path / "on") == measured


class Steps:
    """The parts of a Setup that decide when a run is measured."""

    def __init__(self, steps, **train):
        self.steps, self.cfg = steps, small(train=train)


@pytest.mark.parametrize(
    ("every", "expected"), [(50, [50, 100, 150]), (1, [50, 100, 150]), (30, [60, 120, 150]), (70, [70, 140])]
)
def test_it_is_measured_at_logs_fifty_steps_apart(every, expected):
    setup = Steps(180, log_every=every)
    logs = [step for step in range(1, 181) if step % every == 0 or step == 180]
    assert [step for step in logs if health.due(step, setup)] == expected


HEALTHY = {
    ("grad_norm", "block_0"): 1.0,
    ("grad_norm", "head"): 2.0,
    ("update_ratio", "block_0"): 1e-3,
    ("attention_logit", "block_0"): 20.0,
    ("attention_entropy", "block_0"): 0.5,
    ("dormant_units", "block_0"): 0.1,
    ("dead_scales", "block_0"): 0.0,
    ("logit", "head"): 20.0,
    ("random_mistakes", "labels"): 0.2,
}
SICK = [  # of block_0, and the causes that are found
    ({"grad_norm": 0.0}, {"frozen"}),
    ({"grad_norm": 1e-9}, {"frozen"}),
    ({"grad_norm": float("nan")}, {"not finite"}),
    ({"update_ratio": 0.2}, {"large update"}),
    ({"update_ratio": 1e-9}, {"frozen"}),
    ({"attention_logit": 300.0}, {"attention logit"}),
    ({"attention_entropy": 0.01}, {"entropy"}),
    ({"dormant_units": 0.8}, {"dormant units"}),
    ({"dead_scales": 0.6}, {"dead scales"}),
]


@pytest.mark.parametrize(("changes", "causes"), SICK)
def test_a_value_out_of_its_range_is_a_sign_of_its_block(changes, causes):
    values = HEALTHY | {(quantity, "block_0"): value for quantity, value in changes.items()}
    signs = unusual(values, dtype="bfloat16", rate=1.0)
    assert {(sign.cause, sign.part) for sign in signs} == {(cause, "block_0") for cause in causes}


def test_what_is_usual_gives_no_sign():
    assert not unusual(HEALTHY, dtype="bfloat16", rate=1.0)
    assert not unusual(HEALTHY | {("attention_logit", "block_0"): 300.0}, dtype="float32", rate=1.0)
    ending = HEALTHY | {("update_ratio", "block_0"): 1e-12}  # at the end of a cosine
    assert not unusual(ending, dtype="float32", rate=1e-9)
    assert not unusual(ending | {("update_ratio", "block_0"): 0.0}, dtype="float32", rate=0.0)


def test_a_part_and_cause_are_said_once_in_one_line():
    (sign,) = unusual(HEALTHY | {("logit", "head"): 5e3}, dtype="float32", rate=1.0)
    assert sign.line(50).startswith(
        "health at step 50: head: largest logit of a class 5e+03, usual up to 1000: "
    )
    assert "\n" not in sign.line(50)


def test_mistakes_are_random_when_the_next_guesses_are_chance():
    noisy = mistakes(0.6, 0.6 + 0.4 * 4 / 9, examples=3200, classes=10)[("random_mistakes", "labels")]
    assert 0.85 < noisy < 1.0  # three standard errors below 1
    honest = mistakes(0.6, 0.95, examples=3200, classes=10)[("random_mistakes", "labels")]
    assert honest < 0.25
    assert not mistakes(0.1, 0.5, examples=3200, classes=10)  # nothing learned yet
    assert not mistakes(0.99, 0.995, examples=3200, classes=10)  # 32 mistakes
    assert not mistakes(0.6, 1.0, examples=3200, classes=5)
    assert mistakes(0.5, 1.0, examples=3200, classes=10) == {("random_mistakes", "labels"): 0.0}


def test_the_metrics_are_finite_and_short():
    values = {("logit", "head"): 1 / 3, ("grad_norm", "block_0"): float("inf")}
    assert health.metrics(values) == {"health/logit/head": 0.333333}
