"""A Python that is warm: ``python _server.py FOLDER`` imports what all commands need and forks for each of them.

A command starts in a tenth of a second instead of ten, in a process of its own, in which it registers, configures and
ends by itself. What only a cold start shows (that a config imports what it needs) is seen in tests/test_tools and
tests/test_inherit, whose commands are started as usual.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

MODULES = (
    'cv2', 'matplotlib.pyplot', 'mmcv.ops', 'mmdet.apis', 'mmdet.evaluation', 'mmengine.runner', 'mmpretrain.apis',
    'mmpretrain.evaluation', 'mmseg.apis', 'mmseg.evaluation', 'pycocotools.coco', 'scipy.io', 'torchvision',
    'torch.distributed.run',
)  # fmt: skip


def serve(folder: Path) -> None:
    """Run the commands that ``_client.py`` hands over until the process is stopped.

    Args:
        folder: Where the socket lies, and a file with the number of the process that was started last.
    """
    for name in MODULES:
        importlib.import_module(name)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / 'socket'))
    server.listen()
    (folder / 'ready').touch()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = server.accept()
        request, files, _, _ = socket.recv_fds(connection, 4096, 3)
        if os.fork() == 0:
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _handle(folder, connection, json.loads(Path(request.decode()).read_text()), files)
            return
        connection.close()
        for file in files:
            os.close(file)


def _handle(folder: Path, connection: socket.socket, request: dict[str, Any], files: list[int]) -> None:
    """Start the command, wait for it and answer with its exit code."""
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(request, files)
        return
    (folder / 'pid').write_text(str(pid))
    _, status = os.waitpid(pid, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(request: dict[str, Any], files: list[int]) -> None:
    """Be the process that ``python ARGUMENTS`` would have been, with the arguments besides that make it short."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['env'])
    arguments = request['argv'][1:] if request['argv'][0] == '-u' else request['argv']
    # A launcher hands them on: they are there already.
    rules = json.loads(os.environ.pop('OLOR_MM_SHORTEN', '[]'))
    line = ' '.join(arguments)
    arguments = arguments + [extra for pattern, extras in rules if re.search(pattern, line) for extra in extras]
    try:
        if arguments[0] == '-m':
            sys.argv = arguments[1:]
            runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
        else:
            sys.argv = arguments
            sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
            runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


if __name__ == '__main__':
    serve(Path(sys.argv[1]))
