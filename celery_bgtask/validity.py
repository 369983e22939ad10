"""What a setting or an option may be: the check, and the words for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


Check = Callable[[Any], bool]


def is_limit(value: Any) -> bool:
    """Tell whether *value* is a number of slots, ``None`` or -1, or a callable."""
    if value is None or callable(value):
        return True
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and (value > 0 or value == -1)
    )


def is_count(value: Any) -> bool:
    """Tell whether *value* is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_whole(value: Any) -> bool:
    """Tell whether *value* is a whole number, not below 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_flag(value: Any) -> bool:
    """Tell whether *value* is a truth value."""
    return isinstance(value, bool)


def is_seconds(value: Any) -> bool:
    """Tell whether *value* is a finite time above 0, in seconds."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value > 0
    )


def is_timeout(value: Any) -> bool:
    """Tell whether *value* is a time above 0, or ``None``."""
    return value is None or is_seconds(value)


def is_when_full(value: Any) -> bool:
    """Tell whether *value* says what a full key does."""
    return isinstance(value, str) and value in {"reject", "wait"}


def is_text(value: Any) -> bool:
    """Tell whether *value* is a text that is not empty, or ``None``."""
    return value is None or (isinstance(value, str) and bool(value))


SECONDS = "a number of seconds above 0"
TIMEOUT = "a number of seconds above 0, or None"
COUNT = "a whole number above 0"
LIMIT = "a whole number above 0, -1 or None for no limit, or a callable(key)"
