"""The Celery app: what ``celery -A example_project worker`` finds."""

from __future__ import annotations

from celery import Celery


app = Celery("shop")
app.config_from_object("example_project.celeryconfig")
