"""The gate for learning passes on runs of other seeds, and each of four planted faults trips it."""

import dataclasses
import functools
import importlib.util
import sys

import jax
import pytest
from paths import ROOT

from vit_jax.data import augment, sources
from vit_jax.errors import UserError
from vit_jax.training import schedules, step, tables

pytestmark = pytest.mark.usefixtures("optax_dtypes")


@pytest.fixture
def learning(monkeypatch):
    """The benchmark's module."""
    spec = importlib.util.spec_from_file_location("learning", ROOT / "benchmarks" / "learning.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def tripped(learning, recipe, seeds=(200, 201, 202)):
    """The measures of a recipe that are outside their bands, judged as strictly as in a whole gate."""
    stored = learning.read_bands()
    found = learning.repeat([recipe], seeds)
    whole = sum(len(own) for own in stored.values())
    return {v.measure: v.deviations for v in learning.outside(learning.judge(found, stored, whole))}


def decay_on_biases(patch):
    patch.setattr(tables, "decayed", lambda params, cfg: tables.by_name(lambda name: True, params))


def no_warm_up(patch):
    make = schedules.make
    patch.setattr(schedules, "make", lambda cfg, n: make(dataclasses.replace(cfg, warmup_steps=0), n))


def wrong_probability(patch):
    erase = augment.erase
    twice = lambda image, rng, *, rate, **options: erase(image, rng, rate=2 * rate, **options)
    patch.setattr(augment, "erase", twice)


def stale_mean(patch):
    """The mean stays as it was; the usual loss, a scalar that is followed too, is left alone."""
    follow = step.follow
    scalar = lambda mean: isinstance(mean, jax.Array)
    stale = lambda mean, new, decay: follow(mean, new, decay) if scalar(mean) else mean
    patch.setattr(step, "follow", stale)


FAULTS = [
    (decay_on_biases, "probe", "log of biases' norm"),
    (no_warm_up, "scratch", "first loss"),
    (wrong_probability, "probe", "mean loss"),
    (stale_mean, "scratch", "held-out loss of the mean"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("plant", "recipe", "measure"), FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_planted_fault_trips_the_gate(learning, monkeypatch, plant, recipe, measure):
    plant(monkeypatch)
    assert measure in tripped(learning, recipe)


@pytest.mark.slow
def test_the_shortest_recipe_learns_as_it_did(learning, capsys):
    assert learning.main(["--recipe", "scratch,probe", "--seeds", "300"]) == 0
    assert "| scratch | first loss |" in capsys.readouterr().out


@pytest.mark.slow
def test_five_repetitions_of_the_whole_gate_pass(learning):
    stored, names = learning.read_bands(), list(learning.RECIPES)
    found = learning.repeat(names, range(400, 405))
    for i in range(5):
        verdicts = learning.judge({name: [runs[i]] for name, runs in found.items()}, stored)
        assert not learning.outside(verdicts), learning.table(verdicts)


def runs_of(*values):
    return {"scratch": [{"loss": value} for value in values]}


def test_a_measure_outside_is_named_with_its_standard_deviations(learning):
    stored = learning.bands(runs_of(0.9, 1.0, 1.1))
    assert stored["scratch"]["loss"] == (1.0, pytest.approx(0.1), 3)
    (verdict,) = learning.judge(runs_of(3.0), stored)
    # 2.0 away, in units of 0.1 * sqrt(1/1 + 1/3)
    assert verdict.deviations == pytest.approx(17.32, abs=0.01)
    assert verdict.limit == pytest.approx(9.925, abs=0.001)  # t of 0.995 with 2 degrees of freedom, in tables
    assert learning.outside([verdict]) == [verdict]
    told = str(verdict)
    assert told == "scratch: loss 3 is 17.3 standard deviations above 1 (limit 9.9)"
    (near,) = learning.judge(runs_of(1.5), stored)
    assert not learning.outside([near])
    (lost,) = learning.judge(runs_of(float("nan")), stored)
    assert learning.outside([lost])


def test_more_comparisons_widen_the_limit(learning):
    stored = learning.bands(runs_of(0.9, 1.0, 1.1, 1.05))
    (one,), (many,) = (learning.judge(runs_of(1.0), stored, comparisons) for comparisons in (1, 50))
    assert many.limit > one.limit


def test_the_exit_status_says_whether_all_is_inside(learning, monkeypatch, capsys):
    monkeypatch.setattr(learning, "read_bands", lambda: learning.bands(runs_of(0.9, 1.0, 1.1)))
    for value, status in ((1.0, 0), (3.0, 1)):
        monkeypatch.setattr(learning, "repeat", functools.partial(lambda x, names, seeds: runs_of(x), value))
        assert learning.main([]) == status
    assert "outside: scratch: loss 3 is 17.3 standard deviations above 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "adam"], "--recipe adam is none of scratch, checkpoint, probe"),
        (["--seeds", "1,x"], "--seeds 1,x is not numbers with commas between"),
        (["--seeds", ""], "--seeds  is not numbers"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(learning, capsys, arguments, said):
    assert learning.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")


def test_bands_are_stored_with_others_and_read_again(learning, monkeypatch, tmp_path):
    path = tmp_path / "bands.json"
    with pytest.raises(UserError, match="there are no bands"):
        learning.read_bands(path)
    first = learning.bands(runs_of(0.9, 1.0, 1.1))
    learning.write_bands(first, path)
    learning.write_bands({"muon": first["scratch"]}, path)
    assert learning.read_bands(path) == {"scratch": first["scratch"], "muon": first["scratch"]}
    with pytest.raises(UserError, match="at least 3"):
        learning.bands(runs_of(1.0, 2.0))
    with pytest.raises(UserError, match="has no band of recipe scratch as it is now"):
        learning.judge({"scratch": [{"other": 1.0}]}, first)


def test_every_recipe_has_a_band(learning):
    stored = learning.read_bands()
    assert stored.keys() == learning.RECIPES.keys()
    assert all(band.seeds >= 5 and band.deviation > 0 for own in stored.values() for band in own.values())


def test_two_bits_are_flipped_in_training_alone(learning):
    for train, low, high in ((True, 0.07, 0.13), (False, 0.0, 0.0)):
        digits = sources.digits(train=train)
        labels = learning.two_bits(digits, train).labels()
        assert low <= (labels != digits.labels() % 4).mean() <= high
        assert set(labels) == {0, 1, 2, 3}
