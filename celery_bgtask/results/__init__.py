"""Hear of tasks from anywhere: their progress and their ends, by one connection."""

from __future__ import annotations
