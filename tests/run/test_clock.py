"""Every second of a run is one activity's; told with a clock of the test's own."""

import json
import math
import shutil

import pytest
from tiny_run import tiny

from vit_jax.run import loop
from vit_jax.run.clock import ACTIVITIES, Clock, process_start
from vit_jax.run.sinks import reached


class Time:
    """A clock that goes on when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def time():
    return Time()


def shares(values):
    return {
        name.removeprefix("time/"): v
        for name, v in values.items()
        if name.removeprefix("time/") in ACTIVITIES
    }


def test_every_second_is_counted_once_and_shares_sum_to_1(time):
    clock = Clock(started=990.0, now=time)  # ten seconds ago
    with clock.spent("compiling"):
        time.passes(20)
    with clock.spent("restoring"):
        time.passes(5)
    time.passes(1)
    clock.begin(40, repeated=3)
    with clock.spent("data"):
        time.passes(2)
    time.passes(3)  # the first step is sent
    clock.sent(41)
    time.passes(6)
    with clock.spent("evaluation"):
        time.passes(8)
        with clock.spent("saving"):
            time.passes(4)
        time.passes(1)
    told = clock.read(batch_size=32)
    wanted = {
        "starting": 14,
        "compiling": 20,
        "restoring": 5,
        "data": 2,
        "steps": 6,
        "evaluation": 9,
        "saving": 4,
    }
    assert shares(told) == {name: pytest.approx(seconds / 60) for name, seconds in wanted.items()}
    assert math.fsum(shares(told).values()) == pytest.approx(1)
    assert told["train/images_per_s"] == pytest.approx(1 * 32 / (2 + 6))
    assert (told["time/first_step_s"], told["time/repeated_steps"]) == (pytest.approx(41), 3)
    assert clock.summary() == (
        "time: 10.0% steps, 3.3% data, 15.0% evaluation, 6.7% saving, 33.3% compiling, 8.3% restoring, "
        "23.3% starting of 60 s; first step after 41 s; 3 steps were repeated"
    )


def test_a_reading_tells_of_the_time_since_the_one_before(time):
    clock = Clock(now=time)
    time.passes(7)
    clock.begin(0)
    clock.sent(1)
    time.passes(1)
    clock.read(8)
    for step in (2, 3):
        with clock.spent("data"):
            time.passes(1)
        clock.sent(step)
        time.passes(3)
    told = clock.read(8)
    assert shares(told) == dict.fromkeys(ACTIVITIES, 0.0) | {"steps": 0.75, "data": 0.25}
    assert told["train/images_per_s"] == 2
    assert "time/first_step_s" not in told


def test_time_that_ends_in_an_error_is_counted(time):
    clock = Clock(now=time)

    def fails():
        time.passes(1)
        raise KeyError

    with pytest.raises(KeyError), clock.spent("data"):
        fails()
    assert clock.doing == "starting"
    clock.begin(0)
    clock.sent(1)
    time.passes(1)
    assert "50.0% steps, 50.0% data" in clock.summary()


def test_a_run_that_made_no_step_has_no_summary(time):
    assert Clock(now=time).summary() == ""


def test_everything_that_is_begun_or_ended_is_a_move(time):
    clock, seen = Clock(now=time), []
    for act in (lambda: clock.spent("data").__enter__(), lambda: clock.sent(1), clock.move):
        act()
        seen.append(clock.moves)
    assert seen == sorted(set(seen))
    assert seen[0] > 0


def test_this_process_began_before_now():
    import time

    assert process_start() <= time.monotonic()


@pytest.mark.long
@pytest.mark.usefixtures("optax_dtypes", "one_device")
def test_a_run_tells_where_its_time_went_and_which_steps_it_repeats(tmp_path, capsys):
    rows = lambda: [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = lambda: [row for row in rows() if "train/loss" in row]
    cfg = tiny(steps=12, eval_every=6, log_every=2, checkpoint_every=7)
    loop.run(cfg, tmp_path)
    for row in trained():
        assert math.fsum(shares(row).values()) == pytest.approx(1)
        assert shares(row).keys() == set(ACTIVITIES)
    first, *others = trained()
    assert first["time/repeated_steps"] == 0
    assert first["time/first_step_s"] > 0
    assert first["time/compiling"] > 0
    assert not any("time/first_step_s" in row for row in others)
    assert [row["step"] for row in others if row["time/evaluation"]] == [8]
    assert [row["step"] for row in others if row["time/saving"]] == [8]  # the best; step 7 is no row's end
    assert "\ntime: " in (tmp_path / "log.txt").read_text()

    assert reached(tmp_path / "metrics.jsonl") == 12
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    loop.run(cfg, tmp_path)
    assert "continues after step 7" in (out := capsys.readouterr().out)
    assert "; the first 5 steps are repeated" in out
    assert "; 5 steps were repeated" in out
    again = next(row for row in trained() if row["step"] == 8)
    assert again["time/repeated_steps"] == 5
    assert again["time/restoring"] > 0
