"""The text of the Lua scripts, each with what it includes."""

from __future__ import annotations

import re
from hashlib import sha1
from importlib.resources import files

from ..store import Script


__all__ = ["SCRIPTS", "assemble", "load_sources", "make_script"]

#: A line of a script that names the files of ``lua/includes/`` it needs.
INCLUDE = re.compile(r"^-- include: (.+)$", re.MULTILINE)

#: Begins the names of what is included, as :func:`load_sources` has them.
INCLUDES = "includes/"


def load_sources() -> dict[str, str]:
    """Return the text of all scripts and of what they include, by name."""
    folder = files("celery_bgtask") / "lua"
    return {
        place + entry.name.removesuffix(".lua"): entry.read_text(encoding="utf-8")
        for place in ("", INCLUDES)
        for entry in (folder / place if place else folder).iterdir()
        if entry.name.endswith(".lua")
    }


def assemble(sources: dict[str, str]) -> dict[str, Script]:
    """Return all scripts of *sources*, what they include in front of each, once."""
    return {
        name: make_script(name, "".join(_parts(name, sources, [])))
        for name in sources
        if not name.startswith(INCLUDES)
    }


def make_script(name: str, text: str) -> Script:
    """Return the script of this text."""
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _parts(name: str, sources: dict[str, str], seen: list[str]) -> list[str]:
    parts = []
    for line in INCLUDE.findall(sources[name]):
        for included in line.split(", "):
            if included not in seen:
                seen.append(included)
                parts += _parts(INCLUDES + included, sources, seen)
    return [*parts, sources[name]]


SCRIPTS = assemble(load_sources())
