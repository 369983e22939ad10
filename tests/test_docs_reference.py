"""The pages of the reference, and what the code has: nothing less, nothing more."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

import celery_bgtask
from celery_bgtask import events, exceptions, signals, states
from celery_bgtask.control.control import Control
from celery_bgtask.scripts.loader import INCLUDES, load_sources
from tests.test_docs import rows
from tests.test_docs_cli import PLAYED


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"

DOCUMENTED = re.compile(
    r"^\.\. auto(?:class|data|decorator|exception|function):: ([\w.]+)", re.MULTILINE
)
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def documented(page: str) -> set[str]:
    """Return the names that Sphinx takes from the source on a page."""
    text = (REFERENCE / f"{page}.md").read_text(encoding="utf-8")
    return {name.rpartition(".")[2] for name in DOCUMENTED.findall(text)}


def first_cells(page: str) -> list[str]:
    """Return the first column of a page's tables, without its backticks."""
    return [row[0].strip("`") for row in rows(f"docs/reference/{page}.md")]


def test_every_public_name_is_documented_from_its_source() -> None:
    """What the package exports has its docstring on one of the pages, on one only."""
    pages = [documented(page) for page in ("classes", "errors", "signals", "events")]

    assert set(celery_bgtask.__all__) <= set().union(*pages)
    assert sum(map(len, pages)) == len(set().union(*pages))


def test_the_errors_are_those_of_the_module() -> None:
    """Each error stands on its page, and says what its attributes are."""
    assert documented("errors") == set(exceptions.__all__)
    for name in set(exceptions.__all__) - {"BgTaskError", "ImproperlyConfigured"}:
        assert "Attributes:" in (getattr(exceptions, name).__doc__ or ""), name


def test_the_signals_are_those_of_the_module() -> None:
    """Each signal stands on its page, and its comment names what it sends."""
    assert documented("signals") == set(signals.__all__)
    source = Path(signals.__file__).read_text(encoding="utf-8")
    for name in signals.__all__:
        signal: Any = getattr(signals, name)  # celery-types knows no providing_args
        comment = source.partition(f"\n{name} = ")[0].rpartition("\n\n")[2]
        told = set(re.findall(r"\*(\w+)\*", comment))
        assert told == set(signal.providing_args), name


def test_the_states_are_those_of_the_module() -> None:
    """Each state of a record has its row: what Celery and ``phase`` say of it."""
    stored = {getattr(states, name) for name in states.__all__}

    assert set(first_cells("states")) == stored | {"state", "---"}


def test_the_fields_on_the_wire_are_those_that_are_sent() -> None:
    """The tables of the page name what each kind of event has in its JSON."""
    sent = {
        "Progress": events.encode_progress(
            "id", 1, current=1, total=2, description="", data={}
        ),
        "Ended": events.encode_end("id", 1, state="FAILURE", error=ValueError()),
        "Answer": events.encode_answer("id", "worker", state="STARTED"),
        "Announcement": events.encode_news("task", "queue", {}, offered=True),
    }
    told = {
        row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1]))
        for row in rows("docs/reference/events.md")
        if row[0].startswith("`")
    }

    assert told == {name: set(json.loads(text)) for name, text in sent.items()}


def test_every_script_has_a_header_to_show() -> None:
    """The page of the scripts is made of their headers; a method calls each."""
    called = "".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "celery_bgtask" / "scripts").glob("*.py")
    )
    for name, source in load_sources().items():
        if not name.startswith(INCLUDES):
            assert source.startswith("--[[\n"), name
            assert f'"{name}"' in called, name


@pytest.mark.parametrize(
    "page",
    sorted(
        str(path.relative_to(DOCS).with_suffix(""))
        for path in DOCS.glob("**/*.md")
        if CODE.search(path.read_text(encoding="utf-8"))
    ),
)
def test_the_code_of_a_page_is_run(page: str) -> None:
    """Every page with a program is played as written, or has a test of its own."""
    if page not in PLAYED:
        name = f"{page.rpartition('/')[2]}.md"
        own = [
            path
            for path in (ROOT / "tests").glob("**/*.py")
            if path != Path(__file__) and name in path.read_text("utf-8")
        ]
        assert own, f"no test runs what docs/{page}.md shows"
        return
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert [code for code in CODE.findall(text) if not code.startswith("# ")] == []


def public_functions() -> list[tuple[str, Any]]:
    """Return all functions and methods that applications call, by name."""
    found: dict[str, Any] = {}
    for name in (*celery_bgtask.__all__, "Control"):
        thing = getattr(celery_bgtask, name, Control)
        if inspect.isfunction(thing):
            found[name] = thing
        if not inspect.isclass(thing) or issubclass(thing, BaseException):
            continue
        # Not inspect.getmembers: who asks a task class for its app binds it to one.
        for base in thing.__mro__:
            if base.__module__.startswith("celery_bgtask"):
                found |= {
                    f"{name}.{part}": member
                    for part, member in vars(base).items()
                    if inspect.isfunction(member) and not part.startswith("_")
                }
    return sorted(found.items())


@pytest.mark.parametrize(
    "function", [pytest.param(f, id=name) for name, f in public_functions()]
)
def test_a_docstring_names_every_parameter(function: Any) -> None:
    """Who calls it need not read the source to know what it takes."""
    told = inspect.getdoc(function) or ""
    parameters = [
        name for name in inspect.signature(function).parameters if name != "self"
    ]

    assert [name for name in parameters if name.strip("_") not in told] == []
