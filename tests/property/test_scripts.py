"""The scripts keep their promises in any order of steps."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.property.machine import ScriptsMachine, machine_on
from tests.property.offering import OfferedMachine
from tests.property.steering import SteeredMachine


MODEL = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("machine", [ScriptsMachine, SteeredMachine, OfferedMachine])
def test_the_scripts_keep_what_they_promise(
    machine: type[ScriptsMachine], redis_url: str
) -> None:
    """Clients, a broker, workers and time, in any order, against a model.

    With an operator there is more to see, and seldom enough of the rest.
    """
    run_state_machine_as_test(machine_on(redis_url, machine), settings=MODEL)
