"""Published weight files, in and out: one file a dialect."""
