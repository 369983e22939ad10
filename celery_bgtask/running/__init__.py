"""What happens around a body, in the process that runs it."""

from __future__ import annotations
