"""The claim of a run in a bucket, which one process holds."""

import json
import os
import subprocess
import sys
import threading

import pytest

from vit_jax import paths
from vit_jax.errors import UserError
from vit_jax.run import lease


@pytest.fixture
def folder(gs, tmp_path):
    return paths.of(f"gs://bkt/{tmp_path.name}/run/claims")


@pytest.fixture
def quick(monkeypatch):
    """A lease of a second, so that its end can be waited for."""
    for name, seconds in {"BEAT_S": 0.05, "LEASE_S": 1.0, "LOOK_S": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)


def claim(**changes):
    return json.dumps(json.loads(lease._claim(0)) | changes).encode()


def test_a_claim_is_created_by_one_of_many(folder):
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(paths.create(folder / "1", b"x"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]


def test_while_one_holds_it_others_are_refused_and_after_it_the_next_has_it(folder, quick):
    refused = pytest.raises(UserError, match=r"another process trains in gs://bkt/.*/run: use")
    with lease.held(folder), refused, lease.held(folder):
        pass
    with lease.held(folder):
        assert paths.names_in(folder) == ["2"]
    assert json.loads((folder / "2").read_text())["released"]


def test_a_dead_process_of_this_system_is_not_waited_for(folder, monkeypatch, capfd):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    (folder / "7").write_bytes(claim(pid=gone.pid))
    with lease.held(folder):
        assert paths.names_in(folder) == ["8"]
    assert "waiting" not in capfd.readouterr().out


def test_a_program_that_this_process_was_before_is_not_waited_for(folder, capfd):
    """As training on CPUs starts itself again in the same process."""
    (folder / "7").write_bytes(claim(pid=os.getpid()))
    with lease.held(folder):
        assert paths.names_in(folder) == ["8"]
    assert "waiting" not in capfd.readouterr().out


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"boot": "before"}, {"space": "a container"}])
def test_a_process_that_cannot_be_seen_is_waited_for_and_then_taken_for_dead(folder, quick, capfd, other):
    (folder / "7").write_bytes(claim(pid=4_000_000, **other))
    with lease.held(folder):
        assert paths.names_in(folder) == ["8"]
    assert "claimed by process 4000000 of" in capfd.readouterr().out


def test_two_that_wait_for_a_dead_one_do_not_both_get_it(folder, quick):
    (folder / "7").write_bytes(claim(host="elsewhere"))
    ends, outcomes = threading.Event(), []

    def contend():
        try:
            with lease.held(folder):
                outcomes.append("held")
                ends.wait()
        except UserError:
            outcomes.append("refused")
            ends.set()

    threads = [threading.Thread(target=contend) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused"]


def test_who_lost_it_ends_and_says_why(folder, quick, monkeypatch, capfd):
    codes, ended = [], threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), ended.set()))
    with lease.held(folder):
        paths.create(folder / "2", claim())
        assert ended.wait(60)
    assert set(codes) == {2}
    assert f"another process has claimed {folder.parent}: " in capfd.readouterr().err
