"""A row of the table: what is measured, beside what, and what it should come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal


if TYPE_CHECKING:
    from .world import World


__all__ = ["Aim", "Figure", "Row", "at_least", "at_most", "quantile"]


@dataclass(frozen=True)
class Aim:
    """What a row should come to; *limit* is in the unit of the row."""

    sense: Literal["at most", "at least"]
    limit: float

    def is_met(self, value: float) -> bool:
        """Tell whether *value* is good enough."""
        return value <= self.limit if self.sense == "at most" else value >= self.limit


def at_most(limit: float) -> Aim:
    """Return the aim of a figure that should be small."""
    return Aim("at most", limit)


def at_least(limit: float) -> Aim:
    """Return the aim of a figure that should be large."""
    return Aim("at least", limit)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: For the command line and the JSON.
        what: Is measured.
        beside: What it is compared with, "" for a figure that stands alone.
        aim: What it should come to; ``None``: only shown.
        measure: Yields one value of each round. A round measures both sides, one
            right after the other, so that they meet the same load.
        rounds: How many, in the full and in the short form.
        unit: Of a value: "x" is a ratio.
    """

    name: str
    what: str
    beside: str
    aim: Aim | None
    measure: Callable[[World, int], Iterator[float]]
    rounds: tuple[int, int] = (9, 3)
    unit: str = "x"


@dataclass(frozen=True)
class Figure:
    """What a row has come to: all values of its rounds, and what else was seen."""

    row: Row
    values: Sequence[float]
    error: str = ""

    @property
    def median(self) -> float:
        """The middle of the values."""
        return median(self.values)

    @property
    def is_met(self) -> bool | None:
        """Whether the aim is reached; ``None`` without one."""
        if self.row.aim is None or not self.values:
            return None
        return self.row.aim.is_met(self.median)


def quantile(values: Sequence[float], share: float) -> float:
    """Return what *share* of the values do not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]
