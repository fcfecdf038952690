"""torchrun for the shell scripts: ``python -m olor_mm.tooling.torchrun GPUS SCRIPT [ARGUMENTS]``.

It is ``python -m torch.distributed.run`` with what the toolboxes' scripts read from the environment (NNODES,
NODE_RANK, MASTER_ADDR, PORT), with a free port where none is given, and without torchrun's own traceback where a rank
has already said in a few lines what is wrong.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from .errors import EXIT_INPUT_ERROR, EXIT_INTERRUPTED
from .signals import EXIT_TERMINATED

__all__ = ['launcher_arguments', 'main']

#: Variable to the pattern of its values, and what that is.
_NUMBERS = {
    'NNODES': ('[1-9][0-9]*(:[1-9][0-9]*)?', 'a number of machines, or two as MIN:MAX'),
    'NODE_RANK': ('[0-9]+', 'the number of this machine, from 0'),
    'PORT': ('[1-9][0-9]{0,4}', 'a port, from 1 to 65535'),
}
_LAST_PORT = 65535
#: More than any machine has of GPUs: a slip of the keyboard would otherwise fill its memory with processes.
_MOST_PROCESSES = 1024

_EXITS = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}


def launcher_arguments(processes: str, environ: Mapping[str, str]) -> list[str]:
    """torchrun's arguments for this machine.

    Args:
        processes: Processes to start here, one per GPU.
        environ: NNODES (default 1), NODE_RANK (0), MASTER_ADDR (127.0.0.1), PORT (29500, or any free port where one
            machine is all there is).

    Raises:
        ValueError: If the number of processes is not a positive integer or more than 1024, a variable is no number of
            its kind, or NODE_RANK is not below NNODES.
    """
    if not re.fullmatch('0*[1-9][0-9]*', processes):
        raise ValueError(f'the number of GPUs (processes) must be a positive integer, but got {processes!r}')
    if len(processes.lstrip('0')) > len(str(_MOST_PROCESSES)) or int(processes) > _MOST_PROCESSES:
        raise ValueError(f'one machine takes at most {_MOST_PROCESSES} GPUs (processes), but got {processes:.40}')
    for name, (pattern, what) in _NUMBERS.items():
        if environ.get(name) and not re.fullmatch(pattern, environ[name]):
            raise ValueError(f'{name} must be {what}, but got {environ[name]!r}')
    if int(environ.get('PORT') or 1) > _LAST_PORT:
        raise ValueError(f'PORT must be {_NUMBERS["PORT"][1]}, but got {environ["PORT"]!r}')
    nodes = environ.get('NNODES') or '1'
    if int(environ.get('NODE_RANK') or 0) >= int(nodes.rpartition(':')[2]):
        # torchrun would wait for the other machines, and nobody would come.
        raise ValueError(
            f'NODE_RANK={environ["NODE_RANK"]} must be less than NNODES={nodes}: '
            'set NNODES to the number of machines on each of them'
        )
    port = environ.get('PORT') or ('29500' if nodes != '1' else str(_free_port()))
    return [
        f'--nnodes={nodes}',
        f'--node_rank={environ.get("NODE_RANK") or "0"}',
        f'--master_addr={environ.get("MASTER_ADDR") or "127.0.0.1"}',
        f'--master_port={port}',
        f'--nproc_per_node={processes}',
        # torch < 2.4 looks every 5 seconds: the other ranks would have repeated rank 0's mistake by then.
        '--monitor_interval=0.1',
    ]


def main(argv: Sequence[str]) -> int:
    """Start the processes and wait for them.

    Returns:
        0; 2 if a rank refused its input; 130 after Ctrl-C; 143 after SIGTERM; 128 and the signal's number where a
        rank was killed. Other failures raise torchrun's own error.
    """
    try:
        arguments = launcher_arguments(argv[0] if argv else '', os.environ)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return EXIT_INPUT_ERROR
    try:
        torchrun([*arguments, *argv[1:]])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = int(failure.exitcode)
        if code in (EXIT_INPUT_ERROR, EXIT_INTERRUPTED, EXIT_TERMINATED):
            return code
        if code >= 0:
            raise
        print(f'error: {_killed(rank, -code)}', file=sys.stderr)
        return 128 - code
    except (KeyboardInterrupt, SignalException) as error:
        received = getattr(error, 'sigval', signal.SIGINT)
        if received not in _EXITS:
            raise
        return _EXITS[received]
    return 0


def _killed(rank: int, number: int) -> str:
    cause = ', as the system does where memory runs out' if number == signal.SIGKILL else ''
    return (
        f'the process of rank {rank} was ended by {signal.Signals(number).name}{cause}; the others have been stopped\n'
        '  no checkpoint is damaged: to resume, give the same command with --resume'
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return int(probe.getsockname()[1])


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
