"""The operator's side: see keys, steer them, find and mend what is wrong."""

from __future__ import annotations
