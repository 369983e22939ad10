"""What a worker imports to write down which of Celery's signals of an end it sends."""

from __future__ import annotations

from typing import Any

from celery.signals import task_failure, task_revoked

from tests.smoke.tasks import client_of


SIGNALS = "ledger:signals:"


@task_failure.connect(weak=False)
def _note_failure(
    sender: Any, task_id: str, exception: BaseException, einfo: Any, **_: Any
) -> None:
    assert einfo.exception is not None
    _note(sender, task_id, f"task_failure {type(exception).__name__}")


@task_revoked.connect(weak=False)
def _note_revocation(sender: Any, request: Any, expired: bool, **_: Any) -> None:
    _note(sender, request.id, f"task_revoked {expired}")


def _note(task: Any, task_id: str, fact: str) -> None:
    client_of(task).rpush(SIGNALS + task_id, fact)
