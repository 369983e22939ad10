"""What happens in a worker's main process, beside Celery's own."""

from __future__ import annotations
