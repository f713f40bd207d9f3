"""What is computed with finished models: attention, calibration, statistics, probes. Pure functions."""
