"""What keeps the demonstration from being performed."""

from __future__ import annotations


class Trouble(Exception):
    """Something that the demonstration needs is not there.

    Attributes:
        reason: One line.
        log: The end of a log that says more, or nothing.
    """

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(reason, log)
        self.reason = reason
        self.log = log

    def __str__(self) -> str:
        return f"{self.reason}\n\n{self.log}" if self.log else self.reason
