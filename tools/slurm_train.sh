#!/usr/bin/env bash
# Train through Slurm:
#   slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [OPTIONS OF train.py]
# Environment: GPUS (8), GPUS_PER_NODE (8, or GPUS if that is less), CPUS_PER_TASK (5), SRUN_ARGS, PYTHON.
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [OPTIONS OF train.py]" >&2
    exit 2
fi
here="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
partition="$1"
job_name="$2"
config="$3"
work_dir="$4"
shift 4
# A name that begins with a dash is a file here, not an option.
case "$config" in -*) config="./$config" ;; esac
# Arithmetic would run what stands in brackets in a value that is no number, and overflow with a long one.
for name in GPUS GPUS_PER_NODE CPUS_PER_TASK; do
    case "${!name:-1}" in
        *[!0-9]* | 0*)
            echo "error: $name must be a positive integer, but got '${!name}'" >&2
            exit 2
            ;;
        ???????*)
            echo "error: $name must be less than 1000000, but got '${!name}'" >&2
            exit 2
            ;;
    esac
done
gpus="${GPUS:-8}"
gpus_per_node="${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}"
# SRUN_ARGS is a list of options in one variable: it has to be split into words, and nothing in it evaluated.
read -r -d '' -a srun_args <<<"${SRUN_ARGS:-}" || true

export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
exec srun -p "$partition" \
    --job-name="$job_name" \
    --gres=gpu:"$gpus_per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    "${PYTHON:-python}" -u "$here/train.py" "$config" --work-dir="$work_dir" --launcher=slurm "$@"
