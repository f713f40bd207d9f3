"""Flax modules and the table of sizes. Import the files: this one stays empty so that configs load fast."""
