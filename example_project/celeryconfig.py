"""Celery's settings; read when the app first needs one."""

from __future__ import annotations

import os


include = ["example_project.exports", "example_project.campaign"]

broker_url = result_backend = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
broker_connection_retry_on_startup = True
result_expires = 3600

# Two shops can share a Redis: each has a queue, and keys, of its own.
task_default_queue = os.environ.get("SHOP_QUEUE", "shop")
bgtask_key_prefix = f"bgtask:{task_default_queue}"
