"""What is submitted, and what becomes of it, key by key."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

from celery_bgtask import BgResult, LimitReached
from celery_bgtask.results.watched import Watched
from celery_bgtask.results.watching import Watching
from example_project import shop
from example_project.campaign import send_offer
from example_project.exports import export_month, export_year
from example_project.smtp_server import Ledger

from . import records


class Lane:
    """The tasks of one key.

    Attributes:
        results: What was submitted.
        pending: Those that have not ended yet.
        stats: How many run, are dispatched and wait, says celery_bgtask.
        limit: How many slots there are, as long as the key was in use.
        most: How many ran at once at most, says somebody else.
    """

    def __init__(
        self, name: str, key: str, task: Any, count_most: Callable[[], int]
    ) -> None:
        self.name = name
        self.key = key
        self.task = task
        self.limit = 0
        self.results: list[BgResult] = []
        self.pending: list[BgResult] = []
        self._count_most = count_most

    def submit(self, *args: Any) -> None:
        """Submit one more task; if the key is full, it waits for a slot."""
        result = self.task.delay(*args)
        self.results.append(result)
        self.pending.append(result)

    def look(self) -> None:
        """Bring the counts up to date."""
        self.pending = [result for result in self.pending if not result.ready()]
        self.stats = self.task.control.stats(self.key)
        self.limit = self.stats.limit or self.limit
        self.most = self._count_most()

    def forget(self) -> None:
        """Drop the results."""
        self.results.clear()
        self.pending.clear()

    @property
    def done(self) -> int:
        """How many tasks have ended."""
        return len(self.results) - len(self.pending)

    @property
    def failed(self) -> int:
        """How many tasks have failed."""
        return sum(result.failed() for result in self.results)


class Button:
    """The button "Download now" of one customer.

    Attributes:
        started: The exports that clicks have started.
        refused: How many clicks were refused.
    """

    def __init__(self, customer: int) -> None:
        self.customer = customer
        self.started: list[BgResult] = []
        self.refused = 0

    def click(self) -> str:
        """Export a year, unless that is being done.

        Returns:
            What the customer is told.
        """
        try:
            self.started.append(export_year.delay(self.customer, "2025"))
        except LimitReached as error:
            self.refused += 1
            return f"refused: {error}"
        return "the export starts"


class Work:
    """Everything: a lane for each customer and each domain, and the button."""

    def __init__(self, ledger: Ledger) -> None:
        self.exports = {
            customer: Lane(
                name,
                str(customer),
                export_month,
                partial(records.most_exports, customer),
            )
            for customer, name in shop.BUSINESSES.items()
        }
        self.mails = {
            domain: Lane(domain, domain, send_offer, partial(ledger.most, domain))
            for domain in shop.MAILBOXES
        }
        self.lanes = [*self.exports.values(), *self.mails.values()]
        self.button = Button(customer=2)
        self._watching = Watching([])

    def submit(self) -> None:
        """Submit everything in one burst, and follow the exports."""
        for month in shop.MONTHS:
            for customer, lane in self.exports.items():
                lane.submit(customer, month)
        for address in records.addresses():
            self.mails[address.partition("@")[2]].submit(address)
        names = {
            result.id: lane.name
            for lane in self.exports.values()
            for result in lane.results
        }
        self._watching = Watching(
            (result for lane in self.exports.values() for result in lane.results), names
        )

    def look(self) -> bool:
        """Bring all counts up to date.

        Returns:
            Whether every task has a result.
        """
        for lane in self.lanes:
            lane.look()
        for _ in self._watching.take():
            pass  # what is heard is noted
        return not any(lane.pending for lane in self.lanes) and all(
            result.ready() for result in self.button.started
        )

    @property
    def exporting(self) -> list[Watched]:
        """The exports that have begun to report and have not ended."""
        tasks = self._watching.tasks
        return [task for task in tasks if task.progress and not task.ended]

    def close(self) -> None:
        """Forget the results, while there is a Redis to end their subscriptions."""
        self._watching.close()
        for lane in self.lanes:
            lane.forget()
        self.button.started.clear()
        gc.collect()  # In Celery 5.5 a result that is ready refers to itself.
