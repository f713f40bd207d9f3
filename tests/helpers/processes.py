"""Processes of one run on this machine."""

import socket
import subprocess

from environments import one_device
from paths import ROOT


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(command, folder):
    """A process with one CPU device, whose compiled programs are kept in `folder`."""
    env = one_device(JAX_COMPILATION_CACHE_DIR=str(folder / "compiled"))
    env |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=env, **pipes)
