#!/bin/bash
# Train on all hosts of a Cloud TPU slice, which is made if it is not there; the same command continues:
#   NAME=b16 ZONE=us-west4-a deploy/tpu_vm.sh v5litepod-16 --config configs/vit_b16.py --workdir gs://BUCKET/b16
# SPOT=1 asks for a cheaper slice that may be taken away; PREPARE is a command that each host runs first, such
# as one that mounts a disk. The hosts get the last commit of this checkout.
# The slice costs money until it is deleted: gcloud compute tpus tpu-vm delete NAME --zone ZONE
set -euo pipefail
type=$1
shift
at=("${NAME:-vit-jax}" --zone "${ZONE:-us-west4-a}")
case $type in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) runtime=tpu-ubuntu2204-base ;;
esac
tpu() { gcloud compute tpus tpu-vm "$@"; }

state=$(tpu describe "${at[@]}" --format "value(state)" 2>/dev/null) || state=none
if [[ $state == PREEMPTED ]]; then
  tpu delete "${at[@]}" --quiet
  state=none
fi
if [[ $state == none ]]; then
  tpu create "${at[@]}" --accelerator-type "$type" --version "${RUNTIME:-$runtime}" ${SPOT:+--spot}
fi

bundle=$(mktemp -d)/vit_jax.bundle
git bundle create --quiet "$bundle" HEAD
tpu scp "$bundle" "${at[0]}:vit_jax.bundle" "${at[@]:1}" --worker=all
# uv brings its own Python: that of the machines is older than 3.11.
tpu ssh "${at[@]}" --worker=all --command "
  set -e
  ${PREPARE:-true}
  rm -rf vit_jax && git clone --quiet vit_jax.bundle vit_jax
  python3 -m pip install --quiet --user uv
  test -d env || python3 -m uv venv --quiet --python 3.12 env
  python3 -m uv pip install --quiet --python env -e 'vit_jax[tpu,gcs,tfds]'"
tpu ssh "${at[@]}" --worker=all --command "cd vit_jax && ../env/bin/python train.py $(printf '%q ' "$@")"
