#!/usr/bin/env bash
# Test on the GPUs (or CPU processes) of this machine, or of several:
#   dist_test.sh CONFIG CHECKPOINT GPUS [OPTIONS OF test.py]
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT for several machines; PYTHON for another interpreter.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [OPTIONS OF test.py]" >&2
    exit 2
fi
here="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
config="$1"
checkpoint="$2"
gpus="$3"
shift 3
# A name that begins with a dash is a file here, not an option.
case "$config" in -*) config="./$config" ;; esac
case "$checkpoint" in -*) checkpoint="./$checkpoint" ;; esac

export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
exec -- "${PYTHON:-python}" -m olor_mm.tooling.torchrun "$gpus" \
    "$here/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
