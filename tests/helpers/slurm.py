"""A SLURM of one node, this machine, in a folder: its daemons, and the environment that its commands want."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import threading

from processes import free_port
from tiny_run import read_until

READY = {"slurmctld": "Running as primary controller", "slurmd": "slurmd started"}  # what daemons print
COMMANDS = ("sbatch", "srun", "scontrol")
CONF = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """Programs that are needed, and not here."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    return [name for name in (*READY, *COMMANDS) if not shutil.which(name, path=path)]


@contextlib.contextmanager
def one_node(folder):
    """The environment of SLURM's commands, while its daemons run; the node has all processors there are."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    ports = {"controller": free_port(), "daemon": free_port()}
    conf.write_text(CONF.format(host=host, user=user, folder=folder, cpus=os.cpu_count(), **ports))
    env = os.environ | {"SLURM_CONF": str(conf), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with contextlib.ExitStack() as stack:
        for name, line in READY.items():
            daemon = stack.enter_context(subprocess.Popen([name, "-D"], env=env, **pipes))
            stack.callback(daemon.terminate)
            read_until(daemon, line)
            threading.Thread(target=daemon.stdout.read, daemon=True).start()  # lest the pipe fill up
        yield env
