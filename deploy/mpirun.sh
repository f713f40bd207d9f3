#!/bin/bash
# Train under mpirun, a process a host: options of mpirun, then --, then those of train.py:
#   deploy/mpirun.sh -np 4 --host a,b,c,d -- --config configs/vit_b16.py --workdir /shared/b16
# Open MPI 5 and other launchers need `pip install mpi4py` for the processes to find each other.
set -euo pipefail
options=()
while [[ $# -gt 0 && $1 != -- ]]; do
  options+=("$1")
  shift
done
shift
# Not bound to one core each, as is usual for MPI. An mpirun that is told to end kills its processes before they
# can save: the same command then continues from the checkpoint before.
exec mpirun --bind-to none "${options[@]}" python train.py "$@"
