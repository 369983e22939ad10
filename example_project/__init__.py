"""A small shop whose slow work runs in Celery, limited per customer and domain."""

from __future__ import annotations

from .celery import app


__all__ = ["app"]
