"""A finished run, and the commands that use one, in this process."""

import sys

from vit_jax import config
from vit_jax.cli.common import run_command
from vit_jax.run import loop


def digits_run(path):
    """`path`, after a tiny model was trained there on digits."""
    c = config.default()
    c.model.update(image_size=8, patch_size=4, width=16, depth=2, heads=2, mlp_width=16)
    c.data.update(name="digits", channels=1, augment="none", flip=False, threads=0)
    c.train.update(steps=20, batch_size=64)
    loop.run(config.parse(c), path)
    return path


def call(monkeypatch, capsys, command, *arguments):
    """Exit code, output and error lines of a command's module."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    code = run_command(command.main)
    out, err = capsys.readouterr()
    return code, out, err.splitlines()
