"""Plans for TPU slices that are not here: their names, and what a program's text says."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
from paths import ROOT

from vit_jax.cli import train
from vit_jax.data import sources
from vit_jax.data.decode import BrokenExample
from vit_jax.errors import UserError
from vit_jax.run import program, target
from vit_jax.run.program import Collective

PROGRAM = """
HloModule step

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%fused (p: f32[8,16]) -> f32[8,16] {
  %inner = f32[8,16]{1,0} multiply(%p, %p), backend_config={"estimated_cycles":"99"}
  ROOT %g = bf16[4,8]{1,0} all-gather(%inner), channel_id=7, replica_groups=[4,2]<=[8], dimensions={0}
}

%body (state: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %a = f32[8] fusion(), calls=%fused, metadata={op_name="b_0/mul"}, backend_config={"estimated_cycles":"10"}
  %k = f32[8,16] custom-call(%a), backend_config={"custom_call_config":{"cost_estimate":{"flops":"7"}}}
  %r = f32[8,16]{1,0} all-reduce(%a), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%sum
}

%more (state: (s32[], f32[8,16])) -> pred[] {
  %n = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%start (p: f32[8]) -> f32[8] {
  %again = f32[8]{0} all-reduce(%p), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%sum
}

%finish (p: f32[8]) -> f32[8] {
  %again = f32[8]{0} all-reduce(%p), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%sum
}

ENTRY %main (p0: f32[8,16]) -> f32[8,16] {
  %loop = (s32[], f32[8,16]) while(%t), condition=%more, body=%body
  %one = (f32[8]{0}, f32[2]{0}) all-reduce(%q, %r), channel_id=3, to_apply=%sum
  %begin = f32[8] fusion(%z), kind=kCustom, calls=%start, backend_config={"estimated_cycles":"5"}
  %done = f32[8] fusion(%z), kind=kCustom, calls=%finish, backend_config={"estimated_cycles":"3"}
  %m = f32[8] all-reduce(%q), channel_id=4, replica_groups=mesh['x'=4,'y'=2], device_ids=([4,2]) {'x'}
  %s = (f32[4]{0}, u32[], token[]) send(%q, %t), channel_id=5, x={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %w = f32[8,16] fusion(%one), kind=kLoop, calls=%fused2, backend_config={"estimated_cycles":"1000"}
}
"""


def test_loops_count_as_often_as_they_run_and_an_exchange_once():
    cost = program.read(PROGRAM, {"data": 4, "fsdp": 2})
    assert cost.cycles == 12 * 10 + 5 + 3 + 1000
    assert cost.kernel_flops == 12 * 7
    assert target.CHIPS["v5e"].seconds(cost) == pytest.approx(cost.cycles / 1.503e9 + 84 / 197e12, rel=1e-3)
    assert cost.by_line == {"b_0/mul": 12 * 10, "": 5 + 3 + 1000}
    assert cost.collectives == [
        Collective("all-reduce", "data", 13, 12 * 512 + 32),  # channels 1, in the loop, and 4
        Collective("all-gather", "fsdp", 12, 12 * 64),  # within a fusion of the loop
        Collective("all-reduce", "data, fsdp", 1, 40),  # no groups: all
        Collective("all-reduce", "fsdp", 1, 32),  # channel 2, in the fusion that begins it and that ends it
        Collective("all-reduce", "slices", 1, 16),
    ]


def test_a_loop_that_says_how_often_it_runs_is_believed():
    told = PROGRAM.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert program.read(told, {"data": 4, "fsdp": 2}).cycles == 3 * 10 + 5 + 3 + 1000


@pytest.mark.parametrize(("word", "other"), [("direction=LT", "direction=NE"), ("constant(12)", "copy(%k)")])
def test_without_the_times_of_a_loop_there_is_no_estimate(word, other):
    cost = program.read(PROGRAM.replace(word, other), {"data": 4, "fsdp": 2})
    assert (cost.cycles, len(cost.collectives)) == (0, 5)


def test_a_program_for_a_cpu_has_no_estimate():
    cost = program.read("ENTRY %main () -> f32[] {\n  ROOT %a = f32[] add(%b, %c)\n}\n", {"data": 1})
    assert cost == program.NO_COST


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "is no slice known here: give v4, v5e, v5p, v6e, such as v5e-16"),
        ("h100-8", "is no slice known here"),
        ("v9-8", "is no slice known here"),
        ("v5e-12", "slices of v5e have the sizes 1, 4, 8, 16, 32, 64, 128, 256"),
        ("v4-9", "slices of v4 have the sizes 8, 16, 32, 64"),
        ("0xv5e-16", "slices of v5e have the sizes"),
    ],
)
def test_a_slice_that_is_none_is_named(name, message):
    with pytest.raises(UserError, match=message):
        target.find(name)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(target, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--target=v5e-16 needs the TPU compiler: pip install 'vit_jax\[aot\]'"
    ):
        target.find("v5e-16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--workdir", "x", "--target", "v5e-16"],
            "--target, --best, --examples and --classes require --plan",
        ),
        (["--plan", "--examples", "5"], "--examples and --classes go together"),
        (["--plan", "--examples", "0", "--classes", "5"], "and are at least 1"),
        (["--workdir", "x", "--join_timeout", "0"], "--join_timeout=0 must be at least 1 second"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "configs/quickstart.py", *arguments])
    with pytest.raises(UserError, match=message):
        train.main()


def test_absent_data_has_sizes_and_no_examples():
    data = sources.absent(*sources.PUBLISHED["cifar100"])
    assert (data.train.size, len(data.train.class_names)) == (50_000, 100)
    with pytest.raises(BrokenExample, match="example 3 is not here"):
        data.train.get(3)


def planned(*arguments):
    command = [sys.executable, "train.py", "--config", "configs/quickstart.py", "--plan", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the extra aot: pip install '.[aot]'")
@pytest.mark.parametrize(("name", "chips"), [("v5e-4", 4), ("2xv5e-4", 8), ("v4-8", 4), ("v6e-1", 1)])
def test_a_plan_is_compiled_for_chips_that_are_not_here(name, chips):
    sizes = ("--examples", "640", "--classes", "10", "--config.train.epochs=20")
    done = planned("--target", name, *sizes, f"--config.fsdp={min(chips, 4)}", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["fits"], told["steps"], told["estimate"]["target"]) == (True, 200, name)
    assert told["batch_per_device"] == 64 // chips
    assert sum(told["memory_held"].values()) == told["memory_per_device_bytes"]
    assert 0 < told["estimate"]["share_of_peak"] < 1
    assert told["estimate"]["hours"] == pytest.approx(200 * told["estimate"]["step_s"] / 3600)
    over = {row["axes"] for row in told["collectives"]}
    assert ("fsdp" in over) == (chips > 1)
    assert ("slices" in over) == (chips == 8)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the extra aot: pip install '.[aot]'")
@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        ("v5e-4", "fsdp=3", "fsdp=3 does not divide the 4 devices"),
        ("2xv5e-4", "fsdp=8", "fsdp=8 does not divide the 4 devices of a slice"),
        ("v5e-4", "train.batch_size=66", "train.batch_size=66 is not a multiple of the 4 devices: use 64"),
    ],
)
def test_what_the_chips_of_v5e_4_cannot_share_is_one_line(name, field, message):
    sizes = ("--examples", "640", "--classes", "10")
    refused = planned("--target", name, *sizes, f"--config.{field}")
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.strip().splitlines()
    assert message in line


OWN_MEMORY = """
import sys
from vit_jax.run import target
target.prepare()
import jax
from vit_jax import config
from vit_jax.data import sources
from vit_jax.run import plan
from vit_jax.run.setup import set_up
cfg = config.from_command_line("configs/quickstart.py", sys.argv[1:])
data, chips = sources.absent(640, 10), target.find("v5e-4")
mesh = plan.mesh_of(cfg, chips)
with jax.set_mesh(mesh):
    m = set_up(cfg, mesh, data).lower_step().compile().memory_analysis()
arguments, results = m.argument_size_in_bytes, m.output_size_in_bytes - m.alias_size_in_bytes
print(arguments + results + m.temp_size_in_bytes, plan.make(cfg, data, target=chips).memory_per_device_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the extra aot: pip install '.[aot]'")
def test_the_memory_of_a_plan_for_v5e_4_is_that_of_the_compiled_program_to_the_byte():
    command = [sys.executable, "-c", OWN_MEMORY, "--config.fsdp=4", "--config.optim.ema=0.9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    own, told = done.stdout.split()
    assert own == told


HOLDS_THE_COMPILER = """
from vit_jax.run import target
target.prepare()
print(len(target.find("v5e-4").devices), flush=True)
input()
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the extra aot: pip install '.[aot]'")
def test_plans_for_v5e_4_are_made_side_by_side():
    """As libtpu itself lets one process load it, by a file that all processes of the machine share."""
    command = [sys.executable, "-c", HOLDS_THE_COMPILER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout.readline() == "4\n"
        with subprocess.Popen(command, **pipes) as second:
            assert second.communicate("\n")[0] == "4\n"
        first.communicate("\n")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the extra aot: pip install '.[aot]'")
def test_a_program_that_is_too_large_is_told_with_what_helps():
    sizes = ("--examples", "640000", "--classes", "10", "--config.optim.warmup_steps=0")
    large = ("model.width=1024", "model.heads=8", "model.mlp_width=8192", "model.depth=8", "train.scan=true")
    fields = [f"--config.{field}" for field in (*large, "train.batch_size=32768")]
    told = json.loads(planned("--target", "v5e-4", *sizes, *fields, "--json").stdout)
    assert told["fits"] is False
    assert told["memory_per_device_bytes"] > told["limit_bytes"]
    assert told["estimate"] is None
    assert told["remedies"][-1]["fits"]
