"""What all groups of scripts share: one scope of one store, and its times."""

from __future__ import annotations

from typing import Any

from ..config import Settings
from ..keys import scope_tag
from ..store import Link
from .loader import SCRIPTS


__all__ = ["ScopedScripts", "ms"]


class ScopedScripts:
    """Scripts bound to one scope of one store.

    All methods raise :exc:`.StoreUnavailable` if the store does not answer; all
    may be repeated.

    Args:
        link: The way to the store.
        prefix: Begins all names of the app.
        scope: The tasks that share keys.
        settings: Give the leases and lifetimes.
    """

    def __init__(
        self, link: Link, *, prefix: str, scope: str, settings: Settings
    ) -> None:
        self.scope = scope
        self._link = link
        self._tag = scope_tag(prefix, scope)
        self._channels = f"{self._tag}@{link.db}"
        self._keys = (self._tag, self._channels)
        self._log = (settings.progress_keep, ms(settings.progress_ttl))
        self._max_bytes = settings.max_waiting_bytes
        self._lease = ms(settings.lease)
        self._dispatch = ms(settings.dispatch_lease)
        self._grace = ms(settings.publish_grace)
        self._claim = ms(settings.claim_lease)
        self._tombstone = ms(settings.tombstone_ttl)
        self._keep_sent = settings.keep_dispatched
        # Sweepers come early or late.
        self._interval = ms(settings.sweep_interval * 0.8)

    def _run(self, name: str, *args: Any) -> Any:
        return self._link.run(SCRIPTS[name], self._keys, args)

    def _send(self, name: str, *args: Any) -> None:
        """Run a script without waiting for its reply."""
        self._link.send(SCRIPTS[name], self._keys, args)


def ms(seconds: float) -> int:
    """Return *seconds* in whole milliseconds."""
    return int(seconds * 1000)
