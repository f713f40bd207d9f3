"""Disks that are full or read-only, as file systems of their own, under real training processes."""

import re
import subprocess

import pytest
from tiny_run import CONFIG_FILE, final_digests, read_until, start

from vit_jax.weights.formats import orbax

pytestmark = pytest.mark.slow
EXTRA = ("--config.train.keep=99", "--config.train.checkpoint_every=2")


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG_FILE)
    return path


@pytest.fixture
def disk(tmp_path):
    """(folder of a file system in memory, a function that mounts it again with other options)."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = lambda *arguments: subprocess.run(
        ["mount", *arguments, str(place)], capture_output=True, text=True, check=False
    )
    done = mount("-t", "tmpfs", "-o", "size=600k", "tmpfs")
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")

    def again(options):
        done = mount("-o", f"remount,{options}")
        assert not done.returncode, done.stderr

    yield place, again
    subprocess.run(["umount", str(place)], check=True)


def refused(process, message):
    """The process ends with one line that matches."""
    _, told = process.communicate()
    assert process.returncode == 2, told
    assert re.fullmatch(rf"error: .*{message}.*\n", told), told


def finished(process, last):
    out, told = process.communicate()
    assert process.returncode == 0, told
    assert f"continues after step {last}," in out


def test_a_full_disk_keeps_the_last_checkpoint_and_with_room_the_run_goes_on(config_file, disk, tmp_path):
    place, again = disk
    workdir = place / "run"
    refused(start(config_file, workdir, *EXTRA), "No space left on device.*earlier checkpoints are intact")
    kept = orbax.steps_in(workdir / "checkpoints")
    assert kept
    again("size=64m")
    finished(start(config_file, workdir, *EXTRA), kept[-1])
    start(config_file, tmp_path / "undisturbed", *EXTRA).communicate()
    assert final_digests(workdir) == final_digests(tmp_path / "undisturbed")


def test_a_read_only_directory_is_one_line_and_its_checkpoints_stay(config_file, disk):
    place, again = disk
    again("size=64m")
    process = start(config_file, place / "run", *EXTRA)
    read_until(process, "^step 8/")
    process.terminate()
    process.communicate()
    last = orbax.steps_in(place / "run" / "checkpoints")[-1]
    again("ro")
    for workdir in (place / "run", place / "new"):
        refused(start(config_file, workdir, *EXTRA), f"{workdir}.*Read-only file system")
    again("rw")
    finished(start(config_file, place / "run", *EXTRA), last)
