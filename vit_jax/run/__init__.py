"""What a run does outside of pure functions: set-up, loop, checkpoints, reports, plans and sweeps."""
