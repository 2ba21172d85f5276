"""A Redis for one process of a peer that needs one: in memory, on a socket in that process's folder."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from harness import FOLDER

SOCKET = FOLDER.absolute() / "redis.sock"


@contextlib.contextmanager
def redis() -> Iterator[Path]:
    """Its socket, while it runs. Nothing is written to disk, and nothing listens on the network."""
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("needs redis-server on the path, such as Debian's package redis-server")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([program, "--port", "0", "--unixsocket", str(SOCKET), "--save", ""], **quiet)
    try:
        for _ in range(1_000):
            if SOCKET.exists():
                break
            time.sleep(0.01)
        else:
            raise RuntimeError("redis-server did not open its socket within 10 s")
        yield SOCKET
    finally:
        server.terminate()
        server.wait()
