"""Which configurations --best compiles, with a compiler whose answers are known."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
from paths import ROOT
from tiny_run import tiny

from vit_jax import config
from vit_jax.cli import train
from vit_jax.errors import UserError
from vit_jax.run import search, target
from vit_jax.run.search import Tried

LIMIT = 100


def compiler(memory, speed):
    """A compilation that notes its changes; `memory` and `speed` take (scan, remat, fsdp, parts)."""
    seen = []

    def compile_it(changes):
        seen.append(changes)
        facts = {"train.scan": False, "train.remat": "none", "fsdp": 1, "train.micro_batches": 1} | changes
        scan, remat, fsdp, parts = facts.values()
        if parts > 8:
            raise UserError("train.batch_size cannot be cut so")
        needs = memory(scan, remat, fsdp, parts)
        return Tried(changes, needs, speed(scan, remat, fsdp, parts) if needs <= LIMIT else 0.0)

    return compile_it, seen


SCAN = {"train.scan": True}


def test_what_fits_scanned_needs_no_remedy_and_is_written_out():
    compile_it, seen = compiler(lambda *_: 50, lambda scan, *_: 1.0 if scan else 2.0)
    ranked = search.search(tiny(), 16, LIMIT, compile_it)
    assert seen == [SCAN, {"train.scan": False}]
    assert ranked[0].changes == {"train.scan": False}


def test_a_config_that_is_scanned_is_tried_as_given():
    compile_it, seen = compiler(lambda *_: 50, lambda *_: 1.0)
    search.search(config.apply(tiny(), ["--config.train.scan=true"]), 16, LIMIT, compile_it)
    assert seen == [{}, {"train.scan": False}]


def test_a_config_that_cannot_run_is_refused():
    def refuse(changes):
        raise UserError("fsdp=3 does not divide the 16 devices")

    with pytest.raises(UserError, match="fsdp=3"):
        search.search(tiny(), 16, LIMIT, refuse)


def test_a_way_that_costs_more_is_tried_with_fewer_micro_batches_alone():
    cost = {"none": 300, "dots": 150, "full": 90}
    compile_it, seen = compiler(
        lambda scan, remat, fsdp, parts: cost[remat] // parts + (8 if fsdp == 1 else 4),
        lambda scan, remat, fsdp, parts: {"none": 3.0, "dots": 2.5, "full": 2}[remat] / parts,
    )
    ranked = search.search(tiny(), 16, LIMIT, compile_it)
    dots, full, two, four = (
        *({"train.remat": kind} for kind in ("dots", "full")),
        *({"train.micro_batches": parts} for parts in (2, 4)),
    )
    assert seen == [
        SCAN,  # 308: two parts take 154 at least, and are passed over
        SCAN | four,  # fits
        SCAN | {"fsdp": 16},  # 304: two parts cannot fit, four cannot be faster
        SCAN | dots,
        SCAN | dots | two,  # fits: what follows is to fit in one
        SCAN | dots | {"fsdp": 16},
        SCAN | full,  # fits: nothing that costs more can be faster
        full | {"train.scan": False},
    ]
    assert ranked[0].changes == SCAN | full
    assert [one.fits for one in ranked] == [True] * 4 + [False] * 4


def test_where_nothing_fits_all_ways_end_and_it_is_said():
    compile_it, seen = compiler(lambda *_: 10**6, lambda *_: 1.0)
    ranked = search.search(tiny(), 16, LIMIT, compile_it)
    assert not ranked[0].fits
    assert len(seen) < 8
    chips = target.Target("v5e-16", target.CHIPS["v5e"], [])
    assert search.show(ranked, chips).endswith("nothing that was tried fits: a smaller batch, or more chips")


RANKED = [
    Tried({"train.remat": "full"}, 2**30, 200.0),
    Tried({"train.micro_batches": 4}, 2**31, 160.0),
    Tried({}, 2**35, 0.0),
]


def test_the_table_says_how_much_slower_each_is():
    lines = search.show(RANKED, target.Target("v5e-16", target.CHIPS["v5e"], [])).splitlines()
    assert "no measured times" in lines[0]
    assert lines[1].split() == ["200", "images/s", "+0%", "time", "1.00", "GiB", "--config.train.remat=full"]
    assert lines[2].split()[2:4] == ["+25%", "time"]
    assert lines[3].split() == ["does", "not", "fit", "32.00", "GiB", "as", "given"]
    assert lines[4] == "best: --config.train.remat=full"


def test_its_json_says_the_same():
    flags = ["--config.train.remat=full", "--config.train.micro_batches=4", ""]
    rows = search.rows(RANKED)
    assert [row["flags"] for row in rows] == flags
    assert [row["slower"] for row in rows] == [0.0, 0.25, None]
    assert [(row["fits"], row["images_per_s"]) for row in rows] == [
        (True, 200.0),
        (True, 160.0),
        (False, None),
    ]
    assert [row["memory_per_device_bytes"] for row in rows] == [2**30, 2**31, 2**35]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdir", "x", "--best"], "--best, --examples and --classes require --plan"),
        (["--plan", "--best"], "--best requires --target"),
        (["--plan", "--target", "v5e-16", "--best", "--device_memory_gib", "4"], "leave --device_memory_gib"),
    ],
)
def test_it_wants_a_plan_for_a_target(words, message):
    with pytest.raises(UserError, match=message):
        train.parse(["--config", "configs/quickstart.py", *words])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the extra aot: pip install '.[aot]'")
def test_the_flags_of_the_first_make_a_plan_that_fits_v5e_4():
    """The memory and speed of the ranking are those of a plan with its flags."""
    command = [sys.executable, "train.py", "--config", "configs/quickstart.py", "--plan", "--target", "v5e-4"]
    command += ["--examples", "640", "--classes", "10", "--json"]
    run = lambda *more: subprocess.run(
        [*command, *more], cwd=ROOT, capture_output=True, text=True, check=True
    )
    done = run("--best")
    ranked = json.loads(done.stdout)
    assert len(ranked) == done.stderr.count("compiling: ") == 2
    assert [row["flags"] for row in ranked] == [f"--config.train.scan={scan}" for scan in (False, True)]
    assert ranked[0]["fits"]
    assert 0 < ranked[1]["slower"] < 2  # a loop's body counts as often as it runs
    told = json.loads(run(*ranked[0]["flags"].split()).stdout)
    assert told["memory_per_device_bytes"] == ranked[0]["memory_per_device_bytes"]
    assert told["estimate"]["images_per_s"] == ranked[0]["images_per_s"]
