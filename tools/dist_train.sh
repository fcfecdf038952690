#!/usr/bin/env bash
# Train on the GPUs (or CPU processes) of this machine, or of several:
#   dist_train.sh CONFIG GPUS [OPTIONS OF train.py]
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT for several machines; PYTHON for another interpreter.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [OPTIONS OF train.py]" >&2
    exit 2
fi
here="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
config="$1"
gpus="$2"
shift 2
# A name that begins with a dash is a file here, not an option.
case "$config" in -*) config="./$config" ;; esac

export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
exec -- "${PYTHON:-python}" -m olor_mm.tooling.torchrun "$gpus" "$here/train.py" "$config" --launcher pytorch "$@"
