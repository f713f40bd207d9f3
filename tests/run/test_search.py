"""Which configurations --best compiles, with a compiler whose answers are known."""

import pytest
from tiny_run import tiny

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


def test_what_fits_as_given_is_compared_with_every_other_way():
    compile_it, seen = compiler(lambda *_: 50, lambda scan, *_: 2.0 if scan else 1.0)
    ranked = search.search(tiny(), 16, LIMIT, compile_it)
    ways = [{}, *({"train.remat": kind} for kind in ("dots", "full"))]
    assert seen[:-1] == [remat | split for remat in ways for split in ({}, {"fsdp": 16})]
    assert seen[-1] == ranked[0].changes == {"train.scan": True}


def test_a_config_that_cannot_run_is_refused():
    def refuse(changes):
        raise UserError("fsdp=3 does not divide the 16 devices")

    with pytest.raises(UserError, match="fsdp=3"):
        search.search(tiny(), 16, LIMIT, refuse)


def test_each_way_gets_the_fewest_micro_batches_that_fit_and_the_fastest_is_first():
    cost = {"none": 300, "dots": 150, "full": 90}
    compile_it, seen = compiler(
        lambda scan, remat, fsdp, parts: cost[remat] // parts - (60 if fsdp > 1 else 0) + 8,
        lambda scan, remat, fsdp, parts: (
            {"none": 3.0, "dots": 2.5, "full": 2}[remat] / parts / (1 + fsdp / 99)
        ),
    )
    ranked = search.search(tiny(), 16, LIMIT, compile_it)
    assert ranked[0].changes == {"train.remat": "dots", "fsdp": 16}
    assert [one.fits for one in ranked] == sorted((one.fits for one in ranked), reverse=True)
    assert all(seen.count(changes) == 1 for changes in seen)
    # 308 as given: two parts take 154 at least, and are passed over.
    assert {"train.micro_batches": 2} not in seen
    assert {"train.micro_batches": 4} in seen
    assert {"train.micro_batches": 8} not in seen
    assert seen[-1] == {"train.remat": "dots", "fsdp": 16, "train.scan": True}


def test_where_nothing_fits_all_ways_end_and_it_is_said():
    compile_it, seen = compiler(lambda *_: 10**6, lambda *_: 1.0)
    ranked = search.search(tiny(), 16, LIMIT, compile_it)
    assert not ranked[0].fits
    assert len(seen) < 8
    chips = target.Target("v5e-16", target.CHIPS["v5e"], [])
    assert search.show(ranked, chips).endswith("nothing that was tried fits: a smaller batch, or more chips")


def test_the_table_says_how_much_slower_each_is():
    ranked = [
        Tried({"train.remat": "full"}, 2**30, 200.0),
        Tried({"train.micro_batches": 4}, 2**31, 160.0),
        Tried({}, 2**35, 0.0),
    ]
    lines = search.show(ranked, target.Target("v5e-16", target.CHIPS["v5e"], [])).splitlines()
    assert "no measured times" in lines[0]
    assert lines[1].split() == ["200", "images/s", "+0%", "time", "1.00", "GiB", "--config.train.remat=full"]
    assert lines[2].split()[2:4] == ["+25%", "time"]
    assert lines[3].split()[:3] == ["does", "not", "fit"]
    assert lines[4] == "best: --config.train.remat=full"


@pytest.mark.parametrize("words", [["--best"], ["--plan", "--best"]])
def test_it_wants_a_plan_for_a_target(words):
    with pytest.raises(UserError, match=r"--best requires --plan and --target|require --plan"):
        train.parse(["--config", "configs/quickstart.py", "--workdir", "x", *words])
