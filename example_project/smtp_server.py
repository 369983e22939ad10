"""A mail server that counts its open connections per recipient domain.

It knows nothing of Celery: what it counts is evidence. ``python -m
example_project.smtp_server`` runs it by itself, on port 8025.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread

from aiosmtpd.smtp import SMTP, Envelope, Session


class Ledger:
    """What the server counts, by recipient domain.

    A connection counts from its first recipient until it is closed.

    Attributes:
        received: Mails taken, by address.
    """

    def __init__(self, seconds_per_mail: float) -> None:
        self.seconds_per_mail = seconds_per_mail
        self._open: Counter[str] = Counter()
        self._most: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self._domains: dict[Session, str] = {}

    async def handle_RCPT(  # noqa: N802 - aiosmtpd calls it so
        self,
        _server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        _options: list[str],
    ) -> str:
        """Count the connection for the domain of its first recipient."""
        envelope.rcpt_tos.append(address)
        if session not in self._domains:
            domain = self._domains[session] = address.rpartition("@")[2]
            self._open[domain] += 1
            self._most[domain] = max(self._most[domain], self._open[domain])
        return "250 OK"

    async def handle_DATA(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        """Take a mail, after the time that looking for spam takes."""
        await asyncio.sleep(self.seconds_per_mail)
        self.received.update(envelope.rcpt_tos)
        return "250 OK"

    def most(self, domain: str) -> int:
        """How many connections were open at once at most for *domain*."""
        return self._most[domain]

    def closed(self, session: Session) -> None:
        """A connection has gone."""
        domain = self._domains.pop(session, None)
        if domain is not None:
            self._open[domain] -= 1


class CountedConnection(SMTP):
    """One connection, which tells the ledger when it is closed."""

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is closed, by whichever side."""
        if self.session is not None:
            self.event_handler.closed(self.session)
        super().connection_lost(error)


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """Where the server listens, and what it counts."""

    host: str
    port: int
    ledger: Ledger


@contextmanager
def smtp_server(port: int = 0, seconds_per_mail: float = 0.5) -> Iterator[SmtpServer]:
    """A mail server in a thread, for the time of a ``with`` block.

    Args:
        port: Where to listen; 0 is any free port.
        seconds_per_mail: How long the server thinks about a mail.
    """
    ledger = Ledger(seconds_per_mail)
    listener = socket.create_server(("127.0.0.1", port))
    stop = Event()
    thread = Thread(target=asyncio.run, args=[serve(ledger, listener, stop)])
    thread.start()
    try:
        host, port = listener.getsockname()
        yield SmtpServer(host, port, ledger)
    finally:
        stop.set()
        thread.join()


async def serve(ledger: Ledger, listener: socket.socket, stop: Event) -> None:
    """Serve until *stop* is set; connections that are open then are cut."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: CountedConnection(ledger, hostname="mail.example", loop=loop),
        sock=listener,
    )
    await loop.run_in_executor(None, stop.wait)
    server.close()


if __name__ == "__main__":
    with smtp_server(port=8025) as server, suppress(KeyboardInterrupt):
        print(f"listening on {server.host}:{server.port}", flush=True)
        signal.pause()
