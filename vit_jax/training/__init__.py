"""Pure functions of training: steps, losses, optimizers, schedules, sharding, evaluation."""
