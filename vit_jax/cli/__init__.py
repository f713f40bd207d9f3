"""Commands over the rooms: `python -m vit_jax.cli.NAME --help`."""
