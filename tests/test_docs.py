"""What the documents say is what the code knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import celery_bgtask
from celery_bgtask import config, keys


ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\|\s*(.+?)\s*\|$")


def rows(page: str) -> list[list[str]]:
    """Return the cells of all table rows of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [ROW.match(line) for line in text.splitlines()]
    return [re.split(r"\s*\|\s*", match[1]) for match in lines if match]


def as_markdown(text: str) -> str:
    """Return *text* as a page writes it."""
    return text.replace("<", "&lt;").replace(">", "&gt;")


@pytest.mark.parametrize("setting", config.SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_stands_in_the_reference(setting: config.Setting) -> None:
    """Name, default and meaning of a setting are the same in page and code."""
    name = f"`bgtask_{setting.name}`" + (" *" if setting.option else "")
    default = (
        f'"{setting.default}"'
        if isinstance(setting.default, str)
        else str(setting.default)
    )

    assert [name, default, as_markdown(setting.doc)] in rows(
        "docs/reference/settings.md"
    )


def test_the_reference_has_no_setting_that_is_gone() -> None:
    """The page lists the settings that exist."""
    named = {row[0].strip("` *") for row in rows("docs/reference/settings.md")}

    assert {name for name in named if name.startswith("bgtask_")} == {
        f"bgtask_{setting.name}" for setting in config.SETTINGS
    }


def test_every_name_in_redis_stands_in_the_reference() -> None:
    """Page and module list the same names, types, contents and lifetimes."""
    table = re.findall(
        r"^``(\S+)``\s{2,}(\w+)\s{2,}(.+?)\s{2,}(.+)$", keys.__doc__ or "", re.MULTILINE
    )
    page = rows("docs/reference/redis-keys.md")[2:]

    assert [
        ["`" + name + "`", kind, what.replace("->", "→"), life]
        for name, kind, what, life in table
    ] == page


@pytest.mark.parametrize(
    "page", sorted(p.relative_to(ROOT) for p in ROOT.glob("docs/**/*.md")), ids=str
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """No page points to a file that is not there."""
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#:]+)[^)]*\)", text) if "//" not in t]

    missing = [t for t in targets if not ((ROOT / page).parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_readme_points_to_files_that_exist(page: str) -> None:
    """No link of the README is dead."""
    text = (ROOT / page).read_text(encoding="utf-8")

    assert [
        t for t in re.findall(r"\]\(([^)#:]+)\)", text) if not (ROOT / t).exists()
    ] == []


def test_every_public_name_stands_in_the_reference() -> None:
    """What the package exports is explained, and by its name."""
    page = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")

    hidden = {
        "Cancellation",
        "ImproperlyConfigured",
        "Ended",
        "follow",
    }  # in a sentence
    names = set(celery_bgtask.__all__)
    assert {name for name in names if f"`{name}`" not in page} - hidden == {"bgtask"}
    assert all(name in page for name in names)


def test_every_test_that_a_guarantee_names_exists() -> None:
    """What a guarantee is shown by is there to be run."""
    page = (ROOT / "docs/explanation/guarantees.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)

    missing = [
        (file, test)
        for file, test in named
        if not (ROOT / file).exists() or f"def {test}" not in (ROOT / file).read_text()
    ]
    assert named
    assert missing == []


def test_every_check_that_the_page_names_is_made() -> None:
    """A name in brackets stands in a message of the model."""
    page = (ROOT / "docs/explanation/guarantees.md").read_text(encoding="utf-8")
    model = "".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "tests/property").glob("*.py")
    )
    invariants = [row[0] for row in rows("docs/explanation/guarantees.md")]

    named = set(re.findall(r"`(\[[\w-]+\])`", page))
    assert named
    assert {name for name in named if name not in model} == set()
    assert [f"I{number}" for number in range(1, 19)] == [
        cell for cell in invariants if re.fullmatch(r"I\d+", cell)
    ]


def test_guarantees_are_numbered_and_shown() -> None:
    """Each has its number, its limit if it has one, and its test."""
    page = (ROOT / "docs/explanation/guarantees.md").read_text(encoding="utf-8")
    parts = re.split(r"^\*\*G(\d+)\.\*\* ", page, flags=re.MULTILINE)
    numbers, texts = parts[1::2], parts[2::2]

    assert [int(number) for number in numbers] == [*range(1, len(numbers) + 1)]
    assert [n for n, text in zip(numbers, texts, strict=True) if not shown(text)] == []


def shown(text: str) -> bool:
    """Tell whether the first part of *text* says what it is shown by."""
    return "*Shown by*" in text.partition("\n## ")[0]
