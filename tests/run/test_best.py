"""The folder of the best parameters: known to who goes on, set aside where it is damaged."""

import json
import re
import shutil

import jax.numpy as jnp
import pytest

from vit_jax.run import checkpoint
from vit_jax.weights.formats import orbax


def test_the_best_is_known_to_who_goes_on_and_is_set_aside_where_it_cannot_be_read(tmp_path):
    folder = tmp_path / "best"
    best = checkpoint.Best(folder)
    assert best.score < 0
    best.save(3, {"metrics": {"top1": 0.25}}, params={"x": jnp.ones(2)})
    best.save(5, {"metrics": {"top1": 0.5}}, params={"x": jnp.zeros(2)})
    best.close()
    again = checkpoint.Best(folder)
    assert (orbax.steps_in(folder), again.score, again.notices) == ([5], 0.5, [])
    again.close()
    for file in (folder / "5" / "record").iterdir():
        file.unlink()
    third = checkpoint.Best(folder)
    assert third.score < 0
    assert re.fullmatch(r"checkpoint \S*best/5 cannot be read \(.*\): set aside", third.notices[0])
    assert (tmp_path / "unsound" / "best-5").is_dir()
    third.save(5, {"metrics": {"top1": 0.1}}, params={"x": jnp.ones(2)})
    third.close()
    for name in ("²", "007", "six"):  # no steps of ours
        (folder / name).mkdir()
    assert orbax.steps_in(folder) == [5]


def write_record(step_dir):
    (step_dir / "record" / "data.json").write_text("{}")


def forget_metrics(step_dir):
    path = step_dir / "record" / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {"top1": "x"}}))


def remove_parameters(step_dir):
    shutil.rmtree(step_dir / "params")


@pytest.mark.parametrize("damage", [write_record, forget_metrics, remove_parameters])
def test_a_damaged_best_is_set_aside(tmp_path, damage):
    best = checkpoint.Best(tmp_path / "best")
    best.save(5, {"metrics": {"top1": 0.5}}, params={"x": jnp.zeros(2)})
    best.close()
    damage(tmp_path / "best" / "5")
    again = checkpoint.Best(tmp_path / "best")
    assert again.score < 0
    assert again.notices[0].endswith(": set aside")
    assert not orbax.steps_in(tmp_path / "best")
    again.close()
