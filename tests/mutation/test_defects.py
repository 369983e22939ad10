"""The list of defects is of the code as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

import celery_bgtask
from tests.mutation.defects import DEFECTS, EQUIVALENT, Defect


PACKAGE = Path(celery_bgtask.__file__).parent
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "defect",
    [pytest.param(one, id=one.name) for one in (*DEFECTS, *EQUIVALENT)],
)
def test_each_defect_is_of_a_line_that_stands_once(defect: Defect) -> None:
    """What has changed since must be changed in the list as well."""
    text = (PACKAGE / defect.file).read_text(encoding="utf-8")
    assert text.count(defect.line) == 1
    assert defect.wrong != defect.line
    if defect.file.endswith(".py"):
        compile(text.replace(defect.line, defect.wrong), defect.file, "exec")


@pytest.mark.parametrize("test", sorted({one.test for one in DEFECTS}))
def test_each_defect_names_a_test_that_exists(test: str) -> None:
    """A file, or one test of it."""
    file, _, name = test.partition("::")
    assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8")
