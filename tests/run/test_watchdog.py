"""A process that is stuck, stopped, gone or in error ends all processes of its run, and is named."""

import json
import os
import re
import signal
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image
from processes import free_port, launch
from tiny_run import read_until

from vit_jax import config
from vit_jax.data import loader, sources
from vit_jax.run import distributed, watchdog
from vit_jax.run.clock import ACTIVITIES, Clock
from vit_jax.run.watchdog import Standing, judge

LIMIT_S = 60.0
MOVES = Standing(pulse=9, moves=50, step=7, doing="steps", still_s=1.0)
STUCK = MOVES._replace(still_s=61.0)
DAY = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.mark.parametrize(
    ("standings", "silent", "says"),
    [
        ([MOVES, MOVES], [0, 0], ""),
        ([MOVES._replace(moves=49), STUCK], [0, 0], ""),  # process 0 is slow, and the other waits for it
        (
            [STUCK, STUCK._replace(moves=49, doing="data")],
            [0, 0],
            f"process 1 of 2 is stuck after step 7: waiting for data since {DAY}",
        ),
        (
            [STUCK, STUCK._replace(still_s=62.0, doing="saving")],
            [0, 0],
            f"process 1 of 2 is stuck after step 7: saving since {DAY}",
        ),
        ([STUCK._replace(doing="starting"), STUCK._replace(doing="compiling")], [0, 0], ""),
        ([STUCK], [0], f"this process is stuck after step 7: waiting for the devices since {DAY}"),
        (
            [STUCK, MOVES],
            [0, 61],
            f"process 1 of 2 is stopped or gone: not heard of since {DAY}, after step 7",
        ),
        ([MOVES._replace(ended=""), MOVES], [99, 0], ""),
        (
            [MOVES, MOVES._replace(step=0, ended="no such file")],
            [0, 99],
            r"process 1 of 2 has ended before the first step \(no such file\)",
        ),
        ([MOVES._replace(ended=""), MOVES._replace(ended="")], [99, 99], ""),
    ],
)
def test_the_process_that_holds_up_the_others_is_named(standings, silent, says):
    told = judge(dict(enumerate(standings)), dict(enumerate(silent)), len(standings), LIMIT_S)
    assert re.fullmatch(says, told), told


def test_a_short_limit_holds_for_silence_too():
    assert judge({0: MOVES, 1: MOVES}, {0: 0, 1: 6}, 2, limit_s=5)


def test_every_activity_of_the_clock_has_its_words():
    assert set(watchdog.DOING) == set(ACTIVITIES)
    assert set(watchdog.UNLIMITED) < set(ACTIVITIES)


class Lines:
    """Standard error, of which a test can wait for a line."""

    def __init__(self):
        self.text, self.came = "", threading.Event()

    def write(self, text):
        self.text += text
        self.came.set()

    def flush(self):
        pass


def test_a_run_in_a_process_of_others_says_that_it_is_stuck_and_goes_on(monkeypatch):
    stderr, clock = Lines(), Clock()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("ended the process"))
    with watchdog.watch(clock, 1e-3, own_process=False):
        clock.begin(6)
        clock.sent(7)
        assert stderr.came.wait(60)
    assert "warning: this process is stuck after step 7: waiting for the devices since" in stderr.text


def test_no_limit_no_thread():
    for minutes, threads in ((30.0, 1), (0.0, 0)):
        with watchdog.watch(Clock(), minutes, own_process=True):
            assert sum(t.name == "watchdog" for t in threading.enumerate()) == threads


@pytest.fixture
def pictures(tmp_path):
    """A folder of 40 images in four classes."""
    rng = np.random.default_rng(0)
    for c in range(4):
        (tmp_path / "images" / f"class{c}").mkdir(parents=True)
        for i in range(10):
            picture = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
            picture.save(tmp_path / "images" / f"class{c}" / f"{i}.png")
    return tmp_path / "images"


def fields(pictures, *extra):
    names = ("data.name=folder", f"data.dir={pictures}", "data.channels=3", "train.batch_size=8", *extra)
    return [f"--config.{name}" for name in ("train.eval_every=0", "train.checkpoint_every=2", *names)]


def first_reader(config_file, arguments, picture):
    """Which of two processes reads the picture first in training."""
    cfg = config.from_command_line(str(config_file), arguments)
    source = sources.open_splits(cfg.data).train
    index = source.images.index(picture.relative_to(cfg.data.dir).as_posix())
    size = cfg.train.batch_size
    batches = loader.TrainBatches(source, cfg.data, (8, 8), size, cfg.seed, cfg.train.steps, range(size))
    row = next(ids.index(index) for step in range(99) if index in (ids := batches.ids(step)))
    return row // (size // 2)


def start(config_file, workdir, processes, arguments):
    command = [
        sys.executable,
        "train.py",
        "--config",
        str(config_file),
        "--workdir",
        str(workdir),
        *arguments,
    ]
    address = f"127.0.0.1:{free_port()}"
    told = lambda i: ["--coordinator", address, "--process_id", str(i), "--processes", str(processes)]
    return [launch(command + told(i), config_file.parent) for i in range(processes)]


def of_training(pictures):
    """A picture that the folder's training split has."""
    return next(p for p in sorted(pictures.rglob("*.png")) if zlib.crc32(name_of(p).encode()) % 10)


def name_of(picture):
    return f"{picture.parent.name}/{picture.name}"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_never_comes_ends_the_run_and_the_same_command_continues(
    config_file, pictures, tmp_path, processes
):
    """A file system that hangs, as a pipe that nobody writes to."""
    picture = of_training(pictures)
    arguments = fields(pictures, "train.steps=20", "train.stall_minutes=0.5")
    which = first_reader(config_file, arguments, picture) if processes == 2 else 0
    whole = picture.read_bytes()
    picture.unlink()
    os.mkfifo(picture)
    running = start(config_file, tmp_path / "run", processes, arguments)
    outs = [p.communicate()[0] for p in running]
    assert [p.returncode for p in running] == [watchdog.EXIT_CODE] * processes, outs
    who = f"process {which} of 2" if processes == 2 else "this process"
    for out in outs:
        assert re.search(
            rf"^error: {who} is stuck .*: waiting for data since {DAY}; all processes end", out, re.M
        )
    picture.unlink()
    picture.write_bytes(whole)
    again = start(config_file, tmp_path / "run", processes, arguments)
    outs = [p.communicate()[0] for p in again]
    assert [p.returncode for p in again] == [0] * processes, outs


@pytest.mark.slow
def test_an_error_that_one_process_has_ends_the_others(config_file, pictures, tmp_path):
    picture = of_training(pictures)
    arguments = fields(pictures, "train.steps=20", "train.stall_minutes=0.5")
    which = first_reader(config_file, arguments, picture)
    picture.write_bytes(b"")
    running = start(config_file, tmp_path / "run", 2, arguments)
    outs = [p.communicate()[0] for p in running]
    assert running[1 - which].returncode == watchdog.EXIT_CODE, outs
    assert re.search(
        rf"^error: process {which} of 2 has ended .*{picture.name}.*; all", outs[1 - which], re.M
    )
    assert running[which].returncode, outs
    assert re.search(rf"^error: .*{picture.name}", outs[which], re.M)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_stopped_process_ends_the_other_and_the_same_command_continues(config_file, tmp_path, which):
    length = ["--config.train.eval_every=0", "--config.train.stall_minutes=0.5"]
    running = start(config_file, tmp_path, 2, [*length, "--config.train.steps=100000"])
    read_until(running[0], "^step 15/")  # the checkpoint of step 7 is whole once that of 14 is begun
    running[which].send_signal(signal.SIGSTOP)
    out, _ = running[1 - which].communicate()
    assert running[1 - which].returncode == watchdog.EXIT_CODE, out
    named = rf"^error: process {which} of 2 is stopped or gone: not heard of since {DAY}.*; all processes end"
    assert re.search(named, out, re.M)
    running[which].kill()
    running[which].communicate()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    longer = f"--config.train.steps={rows[-1]['step'] + 9}"
    again = start(config_file, tmp_path, 2, [*length, longer, "--config_change=accept"])
    outs = [p.communicate()[0] for p in again]
    assert [p.returncode for p in again] == [0, 0], outs
    assert "continues after step" in outs[0]


@pytest.mark.slow
def test_a_killed_process_is_named_within_the_heartbeat(config_file, tmp_path):
    arguments = ["--config.train.eval_every=0", "--config.train.steps=100000"]
    running = start(config_file, tmp_path, 2, arguments)
    read_until(running[0], "^step 15/")
    running[1].kill()
    out, _ = running[0].communicate(timeout=10 * distributed.HEARTBEAT_S)
    running[1].communicate()
    assert running[0].returncode == watchdog.EXIT_CODE, out
    (line,) = re.findall(r"^error: .*", out, re.M)
    assert re.match(rf"error: process 1 of 2 is stopped or gone: not heard of since {DAY}, after step", line)
    assert "Traceback" not in out
