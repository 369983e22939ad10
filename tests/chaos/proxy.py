"""A network that can be cut, delayed and led elsewhere: a TCP proxy in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any


#: Bytes that are passed on at a time.
CHUNK = 65_536


class Proxy:
    """Passes on what comes to its port, as long as the line is up.

    Args:
        host: Where it leads to.
        port: Where it leads to.

    Attributes:
        port: Where it listens, on 127.0.0.1.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._delay = 0.0
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._open = self._call(self._make_event())
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Break all connections, and refuse new ones until :meth:`mend`."""
        self._is_cut = True
        self._loop.call_soon_threadsafe(self._break_all)

    def hold(self) -> None:
        """Pass nothing on and say nothing, as a lost route does, until :meth:`mend`."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def delay(self, seconds: float) -> None:
        """Pass on each piece so much later, both ways, until :meth:`mend`."""
        self._delay = seconds

    def mend(self) -> None:
        """Pass everything on again; what was held comes now."""
        self._is_cut = False
        self._delay = 0.0
        self._loop.call_soon_threadsafe(self._open.set)

    def lead_to(self, port: int) -> None:
        """Lead to another port of the same host; old connections are broken."""
        self._target = (self._target[0], port)
        self._loop.call_soon_threadsafe(self._break_all)

    def close(self) -> None:
        """Break everything, for good."""
        self._is_cut = True
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _make_event(self) -> asyncio.Event:
        event = asyncio.Event()
        event.set()
        return event

    async def _end(self) -> None:
        self._server.close()
        self._open.set()
        self._break_all()
        own = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _break_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            if self._is_cut:
                raise ConnectionAbortedError
            there, back = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        try:
            # Cancelled at the end of all: asyncio would tell of it as of an error.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(
                    self._pump(reader, back), self._pump(there, writer)
                )
        finally:
            self._writers -= {writer, back}
            for each in (writer, back):
                each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK):
                await self._open.wait()
                if self._delay:
                    await asyncio.sleep(self._delay)
                writer.write(chunk)
                await writer.drain()
        # The end of one direction is the end of the other: nobody here half-closes.
        writer.transport.abort()
