"""A process that had to compile is replaced by one that finds its programs, once a run."""

import json
import os
import re
import subprocess
import sys

import jax
import pytest
from environments import one_device
from paths import ROOT

from vit_jax.run import cpu

AGAIN = "compiled: starting again"
FIELDS = (
    "model.image_size=8 model.patch_size=4 model.width=8 model.depth=1 model.heads=1 model.mlp_width=8 "
    "optim.warmup_steps=0 train.steps=3 train.epochs=0 train.log_every=1 "
    "train.eval_every=2 train.checkpoint_every=2"
)
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="as keep_freed: glibc alone is known to need it"
)


def train(workdir, cache, *arguments, **environment):
    """The lines that a run of three steps on one CPU device wrote."""
    env = one_device(JAX_COMPILATION_CACHE_DIR=str(cache), **environment)
    command = [sys.executable, "train.py", "--config", "configs/quickstart.py", "--workdir", str(workdir)]
    command += [f"--config.{field}" for field in FIELDS.split()] + list(arguments)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=ROOT, env=env, **pipes)
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


@pytest.mark.long
def test_a_run_starts_again_once_if_it_had_to_compile(tmp_path):
    first = train(tmp_path / "first", tmp_path / "cache")
    second = train(tmp_path / "second", tmp_path / "cache", JAX_LOG_COMPILES="1")
    assert [sum(line.startswith(AGAIN) for line in lines) for lines in (first, second)] == [1, 0]
    starts = next(i for i, line in enumerate(second) if line.startswith("run: starts"))
    before, after = (
        re.findall(r"Compiling jit\((.*?)\)", "".join(x)) for x in (second[:starts], second[starts:])
    )
    assert "step_and_halted" in before
    assert not after


@pytest.mark.long
def test_a_cache_that_keeps_nothing_does_not_start_a_run_again_and_again(tmp_path):
    (tmp_path / "cache").write_text("a file, where jax wants a folder")
    lines = train(tmp_path / "run", tmp_path / "cache", JAX_RAISE_PERSISTENT_CACHE_ERRORS="0")
    assert sum(line.startswith(AGAIN) for line in lines) <= 1
    assert lines[-3].startswith("done: ")


STARTS_AGAIN = """
import os, signal, sys

from vit_jax.cli.common import run_command
from vit_jax.run import cpu

again = cpu.CAUGHT in os.environ
try:
    if again and sys.argv[1] == "while it starts":
        os.kill(os.getpid(), signal.Signals[sys.argv[2]])
except KeyboardInterrupt:
    pass  # lost in a callback

def main():
    cpu.take_up_signals()
    if again:
        print("ran to its end")
        return 0
    if sys.argv[1] == "by another thread":  # which leaves its number in the pipe
        number, exec_now = signal.Signals[sys.argv[2]], os.execv
        os.execv = lambda *command: (os.write(writing[0], bytes([number])), exec_now(*command))
    cpu.start_again()

writing = []
signal.set_wakeup_fd = writing.append
sys.exit(run_command(main))
"""


@pytest.mark.parametrize("moment", ["while it starts", "by another thread"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", -15)])
def test_a_signal_on_the_way_to_the_new_process_ends_it(tmp_path, moment, name, code):
    (tmp_path / "program.py").write_text(STARTS_AGAIN)
    command = [sys.executable, str(tmp_path / "program.py"), moment, name]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert (done.returncode, done.stdout) == (code, b""), done.stderr


def test_no_signal_on_the_way_changes_nothing(tmp_path):
    (tmp_path / "program.py").write_text(STARTS_AGAIN)
    command = [sys.executable, str(tmp_path / "program.py"), "never", "SIGINT"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"ran to its end\n"), done.stderr


@pytest.fixture
def processes(monkeypatch):
    """What `cpu` would replace this process by: a list of the runs in its environment, one each."""
    found = []
    monkeypatch.setattr(cpu, "only_cpu", lambda device: True)
    monkeypatch.setattr(cpu, "keep_freed", lambda: True)
    monkeypatch.setattr(cpu, "start_again", lambda: found.append(os.environ[cpu.STARTED_AGAIN]))
    monkeypatch.setenv(cpu.STARTED_AGAIN, "")
    return found


def test_each_run_of_a_sweep_is_started_again_once_though_nothing_is_kept(processes, tmp_path):
    runs = [tmp_path / name for name in ("a:b", "b", "c")]

    def process():
        """Whether it came to the end of the sweep, though it had to compile."""
        compiled = cpu.after_compiling("any")
        jax.monitoring.record_event(cpu.MISSED)
        before = len(processes)
        return not any(compiled(run) or len(processes) > before for run in runs)

    while not process():
        assert len(processes) <= len(runs)
    assert processes == [json.dumps([str(run) for run in runs[: n + 1]]) for n in range(len(runs))]


def test_a_program_from_standard_input_is_not_started_again(processes, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["-"])
    compiled = cpu.after_compiling("any")
    jax.monitoring.record_event(cpu.MISSED)
    compiled(tmp_path)
    assert not processes


def test_what_was_found_starts_nothing(processes, tmp_path):
    cpu.after_compiling("any")(tmp_path)
    assert not processes


def test_where_steps_run_elsewhere_nothing_starts_again(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "only_cpu", lambda device: False)
    compiled = cpu.after_compiling("any")
    jax.monitoring.record_event(cpu.MISSED)
    monkeypatch.setattr(cpu, "start_again", lambda: pytest.fail("started again"))
    compiled(tmp_path)
