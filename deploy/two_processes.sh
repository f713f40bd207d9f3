#!/bin/bash
# Train in two processes on this machine, with a GPU each if it has any: a rehearsal of a cluster.
#   deploy/two_processes.sh --config configs/quickstart.py --workdir runs/two
# PORT is where they meet (9000). Ctrl-C and SIGTERM save, and end both.
set -uo pipefail
pids=()
trap 'kill -TERM "${pids[@]}"' TERM INT
for i in 0 1; do
  CUDA_VISIBLE_DEVICES=$i python train.py "$@" \
    --coordinator "127.0.0.1:${PORT:-9000}" --process_id "$i" --processes 2 &
  pids+=($!)
done
code=0
for pid in "${pids[@]}"; do
  while kill -0 "$pid" 2>/dev/null; do # a signal ends a wait before its process
    wait "$pid"
    ended=$?
  done
  [[ ${ended:-0} == 0 ]] || code=$ended
done
exit $code
