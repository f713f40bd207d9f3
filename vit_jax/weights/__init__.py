"""Published weight files, in and out: one file per dialect."""
