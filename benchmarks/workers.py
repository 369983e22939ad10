"""Workers for the time of a benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


__all__ = ["PATIENCE", "running_worker"]

#: Seconds in which anything must have happened, also on a slow machine.
PATIENCE = 120.0


@contextmanager
def running_worker(module: str, url: str, processes: int = 2) -> Iterator[None]:
    """A worker for the time of a ``with`` block; its log is shown if that fails."""
    with tempfile.TemporaryFile() as log:
        worker = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", module, "worker"),
                *(f"--concurrency={processes}", f"--hostname={module}@benchmark"),
                *("--without-mingle", "--without-gossip", "--loglevel=WARNING"),
            ],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "BENCHMARK_URL": url},
            stdout=log,
            stderr=log,
        )
        try:
            yield
        except Exception:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise
        finally:
            worker.terminate()
            worker.wait(PATIENCE)
