"""The files in deploy/ start real runs where their launcher is on this machine; others are well-formed."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import slurm
import yaml
from environments import one_device
from paths import ROOT
from processes import free_port
from tiny_run import read_until

from vit_jax import config
from vit_jax.run import watchdog
from vit_jax.weights.formats import orbax

DEPLOY = ROOT / "deploy"
FOR_EVER = ("--config.train.steps=100000", "--config.train.eval_every=0")
CHIPS_A_HOST = 4  # of a v5e slice of several hosts


def environment(folder, **more):
    """That of a user whose `python` is the one of these tests, with one CPU device a process."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = one_device(JAX_COMPILATION_CACHE_DIR=str(folder / "compiled"))
    return env | {"PATH": path, "PYTHONUNBUFFERED": "1", **more}


def launch(command, env):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([str(word) for word in command], cwd=ROOT, env=env, **pipes)


@contextlib.contextmanager
def following(log):
    """A process that prints the lines of a file as they come."""
    with launch(["tail", "-n", "+1", "-F", log], os.environ) as lines:
        yield lines
        lines.kill()


def trained(out, workdir, found_by):
    assert f"2 processes, found by {found_by}" in out, out
    assert "done: top-1" in out, out
    assert orbax.steps_in(workdir / "checkpoints")[-1] == 60


def steps(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "train/loss" in row]


@pytest.mark.slow
def test_two_processes_on_this_machine_train_and_save_on_ctrl_c(config_file, tmp_path):
    command = [DEPLOY / "two_processes.sh", "--config", config_file, "--workdir", tmp_path / "run"]
    env = environment(config_file.parent, PORT=str(free_port()))
    running = launch([*command, *FOR_EVER], env)
    read_until(running, "^step 9/")
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate()
    assert running.returncode == 128 + signal.SIGTERM, out
    assert "stopped by SIGTERM after step" in out
    last = orbax.steps_in(tmp_path / "run" / "checkpoints")[-1]
    assert steps(tmp_path / "run") == list(range(1, last + 1))

    running = launch([*command[:-1], tmp_path / "whole"], env)
    out, _ = running.communicate()
    assert running.returncode == 0, out
    trained(out, tmp_path / "whole", "--coordinator")


@pytest.mark.slow
def test_mpirun_starts_two_processes_that_join(config_file, tmp_path):
    if not shutil.which("mpirun"):
        pytest.skip("mpirun is not here: apt-get install openmpi-bin")
    env = environment(config_file.parent, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    command = [DEPLOY / "mpirun.sh", "-np", "2", "--oversubscribe", "--", "--config", config_file]
    running = launch([*command, "--workdir", tmp_path / "whole"], env)
    out, _ = running.communicate()
    assert running.returncode == 0, out
    trained(out, tmp_path / "whole", "Open MPI")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of a SLURM of one node."""
    if missing := slurm.missing():
        pytest.skip(f"{', '.join(missing)} not here: apt-get install slurm-wlm")
    with slurm.one_node(tmp_path_factory.mktemp("slurm")) as env:
        yield env


def in_cluster(cluster, config_file):
    return environment(config_file.parent) | {"SLURM_CONF": cluster["SLURM_CONF"]}


@pytest.mark.slow
def test_srun_starts_two_processes_that_join(cluster, config_file, tmp_path):
    command = ["srun", "--ntasks=2", "python", "train.py", "--config", config_file, "--workdir", tmp_path]
    running = launch(command, in_cluster(cluster, config_file))
    out, _ = running.communicate()
    assert running.returncode == 0, out
    trained(out, tmp_path, "SLURM")


@pytest.mark.slow
def test_sbatch_trains_and_goes_on_after_its_processes_are_told_to_stop(cluster, config_file, tmp_path):
    """Two minutes of it are SLURM's own: a job that is put back waits for so long."""
    log, workdir = tmp_path / "log", tmp_path / "run"
    log.touch()
    sent = launch(
        [
            *("sbatch", "--wait", "--ntasks-per-node=2", f"--output={log}", DEPLOY / "slurm.sbatch"),
            *("--config", config_file, "--workdir", workdir, "--config.train.steps=200"),
            "--config.train.eval_every=0",
        ],
        in_cluster(cluster, config_file),
    )
    job = re.search(r"Submitted batch job (\d+)", read_until(sent, "Submitted"))[1]
    with following(log) as lines:
        read_until(lines, "^step 9/")
        told = launch(["scancel", "--signal=TERM", job], in_cluster(cluster, config_file))
        assert told.communicate() == ("", None)
        read_until(lines, "^stopped by SIGTERM after step")
        read_until(lines, "^run: continues after step")
    sent.communicate()
    assert sent.returncode == 0, log.read_text()
    assert log.read_text().count("2 processes, found by SLURM") == 2
    assert steps(workdir) == list(range(1, 201))


def test_launchers_know_the_exit_code_of_a_stall():
    text = (DEPLOY / "slurm.sbatch").read_text()
    assert f"== {watchdog.EXIT_CODE}" in text
    assert f"== {128 + signal.SIGTERM}" in text


def test_shell_scripts_are_whole_and_can_be_executed():
    scripts = [*DEPLOY.glob("*.sh"), DEPLOY / "slurm.sbatch"]
    assert len(scripts) == 4
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        assert script.suffix == ".sbatch" or script.stat().st_mode & stat.S_IXUSR


def test_the_jobset_asks_for_all_chips_of_the_slice_and_starts_again():
    job = yaml.safe_load((DEPLOY / "gke_jobset.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job["spec"]["failurePolicy"]["maxRestarts"] > 0
    (slices,) = job["spec"]["replicatedJobs"]
    hosts, pod = slices["template"]["spec"], slices["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert chips == CHIPS_A_HOST
    assert hosts["parallelism"] == hosts["completions"] == rows * columns // chips
    assert (hosts["backoffLimit"], pod["restartPolicy"]) == (0, "Never")  # a slice starts again as a whole
    assert container["command"] == ["python", "train.py"]
    file, workdir, *fields = container["args"]
    assert workdir.startswith("--workdir=gs://")
    config.from_command_line(str(ROOT / file.removeprefix("--config=")), fields)


GCLOUD = r"""#!/bin/bash
printf '%s\x1f' gcloud "$@" >> "$STANDIN/said"
printf '\x1e' >> "$STANDIN/said"
case "$4" in
  describe) cat "$STANDIN/state" 2>/dev/null ;;
  create) echo READY > "$STANDIN/state" ;;
  delete) rm "$STANDIN/state" ;;
  scp) cp "$5" "$STANDIN/host/vit_jax.bundle" ;;
  ssh) cd "$STANDIN/host" && bash -c "${@: -1}" ;;
esac
"""
PYTHON3 = r"""#!/bin/bash
# `pip install uv` and `uv ...`: the environment is that of the tests.
if [[ "$*" == *"uv venv"* ]]; then
  mkdir -p env/bin
  printf '#!/bin/bash\nexec %q "$@"\n' "$PYTHON" > env/bin/python
  chmod +x env/bin/python
fi
"""


@pytest.fixture
def cloud(tmp_path, config_file):
    """The environment of a gcloud that stands in for Google's: its one host is a folder here."""
    programs, host = tmp_path / "bin", tmp_path / "host"
    for folder in (programs, host):
        folder.mkdir()
    for name, text in (("gcloud", GCLOUD), ("python3", PYTHON3)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    env = environment(config_file.parent, STANDIN=str(tmp_path), PYTHON=sys.executable)
    return env | {"PATH": f"{programs}:{env['PATH']}"}


def said(tmp_path):
    """What gcloud was told since the last call, a list of words a command."""
    commands = (tmp_path / "said").read_text().split("\x1e")[:-1]
    (tmp_path / "said").unlink()
    return [command.split("\x1f")[:-1] for command in commands]


@pytest.mark.slow
def test_a_tpu_is_made_once_gets_the_code_trains_and_is_made_again_when_it_was_taken(
    cloud, config_file, tmp_path
):
    run = tmp_path / "run with space"
    command = [DEPLOY / "tpu_vm.sh", "v5litepod-16", "--config", config_file, "--workdir", run]
    first = launch(command, cloud | {"NAME": "b16", "SPOT": "1"})
    out, _ = first.communicate()
    assert first.returncode == 0, out
    assert "done: top-1" in out
    assert (tmp_path / "host" / "vit_jax" / "vit_jax" / "sections.py").exists()
    told = said(tmp_path)
    assert [words[4] for words in told] == ["describe", "create", "scp", "ssh", "ssh"]
    assert {"--accelerator-type", "v5litepod-16", "v2-alpha-tpuv5-lite", "--spot"} < set(told[1])
    assert all("--worker=all" in words for words in told[2:])
    lint(told)

    (tmp_path / "state").write_text("PREEMPTED\n")
    again = launch([*command, "--config.train.steps=60"], cloud)
    out, _ = again.communicate()
    assert again.returncode == 0, out
    assert "continues after step 60" in out
    told = said(tmp_path)
    assert [words[4] for words in told] == ["describe", "delete", "create", "scp", "ssh", "ssh"]
    lint(told)


def lint(told):
    """Google's own gcloud knows each command, with all its options, where it is here."""
    for words in told if shutil.which("gcloud") else ():
        asked = subprocess.run(
            ["gcloud", "meta", "lint-gcloud-commands", "--command-string", shlex.join(words)],
            capture_output=True,
            text=True,
        )
        (verdict,) = json.loads(asked.stdout)
        assert verdict["success"], (words, verdict["error_message"])
