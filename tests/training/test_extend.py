"""An optimizer, a schedule, a loss or a data source is added in its own file and the one that names it."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import tiny

import vit_jax
from vit_jax import config, fields
from vit_jax.data import loader, sources
from vit_jax.data.source import Source, Splits
from vit_jax.run.setup import set_up
from vit_jax.sections import Loss, Optim
from vit_jax.training import losses, optim, schedules
from vit_jax.training import mesh as meshes

pytestmark = pytest.mark.usefixtures("optax_dtypes")


@pytest.mark.parametrize(
    ("section", "name", "table"),
    [(Optim, "name", optim.RULES), (Optim, "schedule", schedules.DECAYS), (Loss, "name", losses.KINDS)],
)
def test_a_table_holds_the_choices_of_its_field(section, name, table):
    (field,) = (f for f in dataclasses.fields(section) if f.name == name)
    assert set(table) == set(typing.get_args(field.type))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoreOptim(Optim):
    """The section after its two fields were edited."""

    name: typing.Literal["adamw", "sign"] = fields.field("adamw", "rule")
    schedule: typing.Literal["cosine", "halving"] = fields.field("cosine", "decay")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoreLoss(Loss):
    """The section after its field was edited."""

    name: typing.Literal["softmax", "brier"] = fields.field("softmax", "kind")


def test_an_optimizer_a_schedule_and_a_loss_from_outside_train(monkeypatch, one_device):
    sign = optax.stateless(lambda updates, params: jax.tree.map(jnp.sign, updates))
    brier = lambda logits_bc, target_bc: ((jax.nn.softmax(logits_bc) - target_bc) ** 2).sum(axis=1)
    monkeypatch.setitem(optim.RULES, "sign", lambda cfg: sign)
    monkeypatch.setitem(schedules.DECAYS, "halving", lambda t, length, timescale: 0.5 ** (t * length))
    monkeypatch.setitem(losses.KINDS, "brier", brier)
    cfg = config.apply(tiny(steps=3), ["--config.model.depth=1", "--config.model.dropout=0"])
    rule = fields.build(MoreOptim, {"name": "sign", "schedule": "halving", "lr": 0.01, "frozen": ["^embed"]})
    cfg = dataclasses.replace(cfg, optim=rule, loss=fields.build(MoreLoss, {"name": "brier"}))
    data = Splits(sources.digits(train=True), sources.digits(train=False))
    size = cfg.train.batch_size
    batch = loader.TrainBatches(data.train, cfg.data, cfg.model.image_hw, size, 0, 1, range(size))[0]
    with jax.set_mesh(one_device):
        setup = set_up(cfg, one_device, data)
        state = setup.init()
        before = jax.device_get(state.params)  # the state is donated
        for _ in range(3):
            state, halted = setup.step(state, meshes.to_devices(batch, size, one_device), None)
            assert not halted
    after = jax.device_get(state.params)
    # The first loss is that of a zero head: ten equal probabilities. The sum is over three steps.
    assert state.window.loss / (3 * size) < 0.9**2 + 9 * 0.1**2
    jax.tree.map(np.testing.assert_array_equal, before["embed"], after["embed"])
    # The signs of three gradients, at rates 0.01, 0.005 and 0.0025, add up to an odd number of the last.
    moved = np.abs(after["head"]["bias"] - before["head"]["bias"]) / 0.0025
    np.testing.assert_allclose(moved, np.round(moved), atol=1e-4)  # rounding of float32
    assert (np.round(moved) % 2 == 1).all()


class Stripes(Source):
    """Pictures that are made when they are asked for: upright stripes, or lying ones."""

    size, class_names = 32, ("upright", "lying")

    def get(self, index):
        image = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None] % 2 * 255, (8, 8))
        return (image.T if index % 2 else image)[..., None], index % 2

    def files(self):
        return []


def test_a_data_source_from_outside_trains_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setitem(sources.SOURCES, "stripes", lambda cfg, train: Stripes())
    fields = ("data.name=stripes", "model.depth=1", "model.dropout=0", "optim.lr=0.01")
    cfg = config.apply(tiny(steps=12), [f"--config.{field}" for field in fields])
    run = vit_jax.train(cfg, tmp_path)
    assert run.metrics["top1"] == 1.0
    assert run.load().spec.class_names == ("upright", "lying")
