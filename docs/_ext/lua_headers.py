"""The directive ``lua-headers``: a section for each script, with its header.

The header of a script is its contract, and a unit test compares it with the body.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from celery_bgtask.scripts.loader import INCLUDES, load_sources


HEADER = re.compile(r"\A--\[\[\n(.*?)\n?\]\]", re.DOTALL)


class LuaHeaders(Directive):
    """All scripts that a Python method calls, by name."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        sources = load_sources()
        return [
            section(name, HEADER.match(sources[name]))
            for name in sorted(sources)
            if not name.startswith(INCLUDES)
        ]


def section(name: str, header: re.Match[str] | None) -> nodes.section:
    """Return what there is to say of one script."""
    if header is None:
        raise ValueError(f"{name}: a script begins with its header")
    prose, _, contract = header[1].partition("\nKEYS")
    made = nodes.section(ids=[nodes.make_id(f"script-{name}")])
    made += nodes.title(text=name)
    for paragraph in prose.strip().split("\n\n"):
        made += nodes.paragraph(text=" ".join(paragraph.split()))
    if contract:
        text = f"KEYS{contract}".rstrip()
        made += nodes.literal_block(text, text, language="text")
    return made


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("lua-headers", LuaHeaders)
    return {"parallel_read_safe": True}
