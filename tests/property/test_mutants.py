"""No check of the machine is vacuous: each one finds a script that is broken.

A mutant is one line of the Lua text, changed in a copy that only the test knows.
The machine must fail, and say so by the check that is meant to find it.
"""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from celery_bgtask.scripts import base
from celery_bgtask.scripts.loader import assemble, load_sources
from tests.property.machine import machine_on
from tests.property.mutants import MUTANTS, Mutant
from tests.property.offer_mutants import OFFER_MUTANTS


HUNT = settings(
    max_examples=3000,
    stateful_step_count=50,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


def param_of(mutant: Mutant) -> Any:
    """The mutant as a test of its own."""
    often = not mutant.rare or os.environ.get("BGTASK_TEST_SLOW")
    skip = pytest.mark.skipif(not often, reason="BGTASK_TEST_SLOW is not set")
    return pytest.param(mutant, id=mutant.name, marks=[skip])


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "mutant", [param_of(mutant) for mutant in (*MUTANTS, *OFFER_MUTANTS)]
)
def test_the_machine_finds(
    mutant: Mutant, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script with this line wrong breaks the promise that the check is about."""
    sources = load_sources()
    assert sources[mutant.file].count(mutant.line) == 1
    sources[mutant.file] = sources[mutant.file].replace(mutant.line, mutant.wrong)
    monkeypatch.setattr(base, "SCRIPTS", assemble(sources))

    with pytest.raises(AssertionError) as caught:
        run_state_machine_as_test(machine_on(redis_url, mutant.machine), settings=HUNT)

    found = re.match(r"\[([\w-]+)\]", str(caught.value))
    assert found, f"it was found by chance: {caught.value}"
    assert found[1] in mutant.found_by.split("|"), str(caught.value)
