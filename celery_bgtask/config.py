"""The bgtask_* settings: name, default, meaning, and how they are checked."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from celery import Celery

from .exceptions import ImproperlyConfigured
from .validity import (
    COUNT,
    LIMIT,
    SECONDS,
    TIMEOUT,
    Check,
    is_count,
    is_flag,
    is_limit,
    is_seconds,
    is_text,
    is_timeout,
    is_when_full,
    is_whole,
)


__all__ = ["SETTINGS", "Setting", "Settings", "read_settings"]


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of this package.

    Attributes:
        name: Without its prefix ``bgtask_``.
        default: Its value where it is not set.
        check: Tells whether a value will do.
        want: What a value must be, for the error.
        doc: What it means.
        option: Whether a task may say otherwise, as an option of that name.
    """

    name: str
    default: Any
    check: Check
    want: str
    doc: str
    option: bool = False

    def checked(self, value: Any, where: str) -> Any:
        """Return *value*.

        Raises:
            ImproperlyConfigured: If it will not do; *where* says what was set.
        """
        if not self.check(value):
            raise ImproperlyConfigured(f"{where} must be {self.want}, not {value!r}")
        return value


#: A silence of a third of a lease counts as an outage: three sweeps are missing.
SWEEPS_PER_LEASE = 12

#: All settings; ``docs/reference/settings.md`` lists them.
SETTINGS = (
    Setting(
        "max_per_key",
        5,
        is_limit,
        LIMIT,
        "slots per key; None or -1: no limit; or a callable(key)",
        option=True,
    ),
    Setting(
        "when_full",
        "reject",
        is_when_full,
        '"reject" or "wait"',
        'what a full key does: "reject" raises LimitReached, "wait" parks the task',
        option=True,
    ),
    Setting(
        "max_waiting_per_key",
        10_000,
        is_count,
        COUNT,
        "tasks that may wait per key; more raise LimitReached",
        option=True,
    ),
    Setting(
        "max_payload_size",
        1024 * 1024,
        is_count,
        COUNT,
        "bytes a message body may have as serialized",
        option=True,
    ),
    Setting(
        "accept_timeout",
        None,
        is_timeout,
        TIMEOUT,
        "seconds in which a worker must start the task",
        option=True,
    ),
    Setting(
        "finish_timeout",
        None,
        is_timeout,
        TIMEOUT,
        "seconds in which the task must have ended",
        option=True,
    ),
    Setting(
        "block_threshold",
        10,
        is_count,
        COUNT,
        "bad tasks that a key may have in block_interval; one more blocks it",
        option=True,
    ),
    Setting(
        "block_interval",
        1.0,
        is_seconds,
        SECONDS,
        "seconds in which they are counted",
        option=True,
    ),
    Setting(
        "block_for",
        3600.0,
        is_seconds,
        SECONDS,
        "seconds for which the key is blocked",
        option=True,
    ),
    Setting(
        "log_blocks",
        0,
        is_whole,
        "a whole number, 0 for no log",
        "blocks to keep a log of, for each key",
    ),
    Setting(
        "keep_dispatched",
        True,
        is_flag,
        "True or False",
        "keep the message of a task until it starts, so that a lost one can be "
        "published again; not of keys without a limit",
    ),
    Setting(
        "max_waiting_bytes",
        256 * 1024 * 1024,
        is_count,
        COUNT,
        "bytes of all that waits in a scope; more raise LimitReached",
    ),
    Setting(
        "redis_url",
        None,
        is_text,
        "a URL",
        "the server that holds the slots; by default the result backend, else the "
        "broker, whichever is Redis or Valkey",
    ),
    Setting(
        "key_prefix",
        None,
        is_text,
        "a text",
        "begins all names in Redis; by default bgtask:<name of the app>",
    ),
    Setting("lease", 30.0, is_seconds, SECONDS, "lease of a running task"),
    Setting(
        "dispatch_lease",
        300.0,
        is_seconds,
        SECONDS,
        "lease of a task on its way through the broker; then its slot is given on",
    ),
    Setting(
        "sweep_interval",
        1.0,
        is_seconds,
        SECONDS,
        "time between two sweeps; at most a twelfth of the lease",
    ),
    Setting(
        "publish_grace",
        5.0,
        is_seconds,
        SECONDS,
        "time in which who frees a slot must publish the next task; then a sweep does",
    ),
    Setting(
        "store_wait",
        10.0,
        is_seconds,
        SECONDS,
        "time a task waits for the store at its start; then its message goes back",
    ),
    Setting(
        "tombstone_ttl",
        86_400.0,
        is_seconds,
        SECONDS,
        "how long the store remembers an ended task whose message may be left",
    ),
    Setting(
        "offer_timeout",
        60.0,
        is_seconds,
        SECONDS,
        "how long a task is on offer that has no accept_timeout",
    ),
    Setting(
        "claim_lease",
        5.0,
        is_seconds,
        SECONDS,
        "time in which who has claimed an offer must start it; then others may",
    ),
    Setting(
        "progress_keep",
        100,
        is_count,
        COUNT,
        "reports of a task that are kept for who follows it late",
    ),
    Setting(
        "progress_ttl",
        600.0,
        is_seconds,
        SECONDS,
        "how long they are kept after the last one",
    ),
    Setting(
        "progress_mirror",
        True,
        is_flag,
        "True or False",
        "whether reports also become Celery's custom state PROGRESS",
    ),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of an app, checked; times in seconds.

    The attributes are the :data:`SETTINGS`.
    """

    max_per_key: Any
    when_full: str
    max_waiting_per_key: int
    max_payload_size: int
    accept_timeout: float | None
    finish_timeout: float | None
    block_threshold: int
    block_interval: float
    block_for: float
    log_blocks: int
    keep_dispatched: bool
    max_waiting_bytes: int
    redis_url: str | None
    key_prefix: str | None
    lease: float
    dispatch_lease: float
    sweep_interval: float
    publish_grace: float
    store_wait: float
    tombstone_ttl: float
    offer_timeout: float
    claim_lease: float
    progress_keep: int
    progress_ttl: float
    progress_mirror: bool


def check_setting_names(app: Celery) -> None:
    """Check that no setting of ours is misspelled.

    Raises:
        ImproperlyConfigured: For the first that does not exist.
    """
    known = [setting.name for setting in SETTINGS]
    for key in app.conf:
        lower = key.lower().removeprefix("celery_")
        name = lower.removeprefix("bgtask_")
        if name != lower and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean bgtask_{near[0]}?" if near else ""
            raise ImproperlyConfigured(f"unknown setting {key}{hint}")


def read_settings(app: Celery) -> Settings:
    """Return the settings of *app*.

    Raises:
        ImproperlyConfigured: If one will not do.
    """
    check_setting_names(app)
    values = {
        setting.name: setting.checked(
            app.conf.get(f"bgtask_{setting.name}", setting.default),
            f"bgtask_{setting.name}",
        )
        for setting in SETTINGS
    }
    settings = Settings(**values)
    # With a hair's breadth for numbers such as 0.1, which are not what they seem.
    if settings.sweep_interval * SWEEPS_PER_LEASE > settings.lease * 1.0001:
        raise ImproperlyConfigured(
            f"bgtask_sweep_interval ({settings.sweep_interval} s) must be at most a "
            f"twelfth of bgtask_lease ({settings.lease} s): some sweeps must be "
            "missing before their silence means that the store was away"
        )
    return settings
