"""Processes find each other where jax's own detection finds a cluster, and end in time where they do not."""

import http.server
import json
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import free_port, launch
from tiny_run import read_until, tiny

from vit_jax.errors import UserError
from vit_jax.run import distributed, loop, rendezvous
from vit_jax.run.setup import Setup

KNOWN = ("SLURM_", "OMPI_", "PMI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JAX_COORDINATOR_PORT", "GCE_")
SLURM = {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
URI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}


@pytest.fixture
def environment(monkeypatch):
    """A function that sets the variables of a cluster, and only those."""
    import os

    for name in list(os.environ):
        if name.startswith(KNOWN):
            monkeypatch.delenv(name)
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        (SLURM, None),  # the script of a batch job, not a task of it
        (SLURM | {"SLURM_STEP_NODELIST": "n[001-004],x"}, ("n001:61445", 4, 2, "SLURM")),
        (SLURM | {"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, ("", 1, 0, "SLURM")),
        (OPEN_MPI | URI, ("10.96.0.1:62624", 2, 1, "Open MPI")),
        ({"PMI_SIZE": "1"}, None),
    ],
)
def test_a_cluster_is_what_jax_finds(environment, variables, found):
    environment(variables)
    cluster = distributed.detect(1)
    assert (cluster and tuple(cluster)[:4]) == found


@pytest.mark.parametrize("variables", [{"PMI_SIZE": "3"}, {"OMPI_COMM_WORLD_SIZE": "3"}])
def test_another_mpi_launcher_needs_mpi4py(environment, variables):
    pytest.importorskip("jax")
    environment(variables)
    with pytest.raises(UserError, match="an MPI launcher started 3 processes: pip install mpi4py"):
        distributed.detect(1)


def test_an_error_without_text_is_named_by_its_type(environment, monkeypatch):
    from jax._src.clusters import ClusterEnv

    class Silent:
        name, opt_in_only_method = "Silent", False

        @staticmethod
        def is_env_present():
            raise TimeoutError

    environment({})
    monkeypatch.setattr(ClusterEnv, "_cluster_types", [Silent])
    with pytest.raises(UserError, match=r"cannot be asked for its processes \(TimeoutError: TimeoutError\)"):
        distributed.detect(1)


class Metadata(http.server.BaseHTTPRequestHandler):
    """Stands in for the metadata server of a Cloud TPU VM."""

    attributes: dict[str, str]

    def do_GET(self):
        value = self.attributes.get(self.path.rsplit("/", 1)[-1])
        self.send_response(404 if value is None else 200)
        self.end_headers()
        self.wfile.write((value or "").encode())

    def log_message(self, format, *args):
        pass


@pytest.fixture
def metadata():
    """A function that starts a server with these attributes and gives its address."""
    servers = []

    def serve(**attributes):
        names = {name.replace("_", "-"): value for name, value in attributes.items()}
        handler = type("Told", (Metadata,), {"attributes": names})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def worker(number, *, hosts="127.0.0.1,127.0.0.1", slices=""):
    return {"agent_worker_number": str(number), "worker_network_endpoints": hosts, "tpu_env": slices}


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (worker(1, hosts="a:0:10.0.0.7,b:1:10.0.0.8"), (2, 1)),
        (worker(0, hosts="10.0.0.7"), (1, 0)),  # of one host: nobody to wait for
        (worker(1, slices="MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'"), (4, 3)),
    ],
)
def test_a_cloud_tpu_vm_is_told_by_its_metadata(environment, metadata, monkeypatch, told, found):
    from jax._src.clusters import cloud_tpu_cluster

    environment({"GCE_METADATA_IP": metadata(**told)})
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    cluster = distributed.detect(5)
    assert cluster[1:4] == (*found, "Cloud TPU metadata")
    if cluster.processes == 1:
        assert distributed.join(None) == "one process: Cloud TPU metadata names one"


def meet(numbers, processes, timeout_s):
    """The error message that each process gets, or None; each process is a thread."""
    address = f"127.0.0.1:{free_port()}"

    def one(number):
        try:
            return rendezvous.meet(address, number, processes, timeout_s)
        except UserError as e:
            return str(e)

    with ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(one, numbers))


def test_all_meet_in_any_order():
    assert meet([3, 0, 2, 1], 4, 60) == [None] * 4


@pytest.mark.parametrize(
    ("numbers", "processes", "says"),
    [
        ([0, 2], 4, "processes 1, 3 of 4 are missing after 1 s"),
        ([0], 2, "process 1 of 2 is missing after 1 s"),
        ([0, 1, 1], 3, "process 1 of 3 is there twice after 1 s"),
    ],
)
def test_all_that_are_there_are_told_who_is_not(numbers, processes, says):
    told = meet(numbers, processes, 1)
    assert told == [f"{says}: start all processes, each with its own number"] * len(numbers)


def test_a_process_zero_that_is_not_there_is_named():
    (said,) = meet([1], 2, 1)
    assert "process 0 at 127.0.0.1:" in said
    assert "does not answer after 1 s" in said


def test_strangers_on_the_port_are_no_processes():
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(rendezvous.meet, f"127.0.0.1:{port}", 0, 2, 60)
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"7\n", b""):
            while True:
                try:
                    with socket.create_connection(("127.0.0.1", port)) as stranger:
                        stranger.sendall(said)
                        break
                except ConnectionRefusedError:
                    continue
        pool.submit(rendezvous.meet, f"127.0.0.1:{port}", 1, 2, 60).result()
        first.result()


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0), reuse_port=False) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"process 0 cannot listen on port {port} \(.*in use"):
            rendezvous.meet(f"127.0.0.1:{port}", 0, 2, 1)


def test_processes_wait_for_each_other_after_compiling_and_before_the_first_collective(monkeypatch, tmp_path):
    order = []
    monkeypatch.setattr(Setup, "compile_ahead", lambda self, fresh: order.append("compile"))
    monkeypatch.setattr(distributed, "wait_for_all", lambda: order.append("wait"))

    def first_collective(*args, **kwargs):
        order.append("barrier of the checkpoints")
        raise UserError("that is enough")

    monkeypatch.setattr(loop, "Checkpoints", first_collective)
    with pytest.raises(UserError, match="that is enough"):
        loop.run(tiny(), tmp_path)
    assert order == ["compile", "wait", "barrier of the checkpoints"]


def test_one_process_waits_for_nobody():
    distributed.wait_for_all()


# A TPU VM in all but its chips: jax looks for those before it asks the metadata server.
ON_A_TPU_VM = """
import os, runpy, sys
import jax
from jax._src.clusters import cloud_tpu_cluster
os.environ.pop("TPU_SKIP_MDS_QUERY", None)
cloud_tpu_cluster.running_in_cloud_tpu_vm = True
runpy.run_path("train.py", run_name="__main__")
"""


def start(config_file, workdir, address, port, monkeypatch, *extra):
    monkeypatch.setenv("GCE_METADATA_IP", address)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", str(port))
    command = [sys.executable, "-c", ON_A_TPU_VM, "--config", str(config_file), "--workdir", str(workdir)]
    return launch([*command, *extra], config_file.parent)


@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 2])
def test_two_hosts_of_a_slice_or_of_two_train_are_preempted_and_continue(
    config_file, tmp_path, metadata, monkeypatch, slices
):
    def hosts(*extra):
        port, told = free_port(), [worker(0), worker(1)]
        if slices == 2:
            said = "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_COORDINATOR_ADDRESS: '127.0.0.1'\n"
            said += "MEGASCALE_SLICE_ID: '{}'"
            told = [worker(0, hosts="127.0.0.1", slices=said.format(i)) for i in range(2)]
        return [start(config_file, tmp_path / "run", metadata(**t), port, monkeypatch, *extra) for t in told]

    running = hosts("--config.train.steps=100000", "--config.train.eval_every=0")
    found = read_until(running[0], "processes, found by")
    assert "2 processes, found by Cloud TPU metadata" in found
    read_until(running[0], "^step 3/")
    running[1].send_signal(signal.SIGTERM)
    outs = [p.communicate()[0] for p in running]
    assert [p.returncode for p in running] == [128 + signal.SIGTERM] * 2, outs
    assert "stopped by SIGTERM after step" in outs[0]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = rows[-1]["step"]
    again = hosts(f"--config.train.steps={last + 5}", "--config.train.eval_every=0", "--config_change=accept")
    outs = [p.communicate()[0] for p in again]
    assert [p.returncode for p in again] == [0, 0], outs
    assert f"continues after step {last}" in outs[0]


@pytest.mark.slow
def test_one_host_of_two_ends_in_time_and_names_the_other(config_file, tmp_path, metadata, monkeypatch):
    for number, says in ((0, "process 1 of 2 is missing"), (1, "process 0 at 127.0.0.1:")):
        address = metadata(**worker(number))
        process = start(config_file, tmp_path / "run", address, free_port(), monkeypatch, "--join_timeout=2")
        out, _ = process.communicate()
        assert process.returncode == 2, out
        assert f"error: {says}" in out
        assert "after 2 s" in out
    assert not (tmp_path / "run").exists()
