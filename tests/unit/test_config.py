"""The bgtask_* settings: one list, checked when they are read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_bgtask.config import SETTINGS, Settings, read_settings


def test_the_list_and_the_class_have_the_same_settings() -> None:
    """Settings has one attribute for each entry of SETTINGS, in the same order."""
    fields = [field.name for field in dataclasses.fields(Settings)]

    assert fields == [setting.name for setting in SETTINGS]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_defaults_are_valid_and_explained(setting: Any) -> None:
    """Each default passes its own check, and each setting says what it means."""
    assert setting.check(setting.default)
    assert setting.doc
    assert setting.want


def test_defaults_are_what_the_documentation_promises(app: Celery) -> None:
    """An app that sets nothing gets these."""
    assert dataclasses.asdict(read_settings(app)) == {
        "max_per_key": 5,
        "when_full": "reject",
        "max_waiting_per_key": 10_000,
        "max_payload_size": 1024 * 1024,
        "accept_timeout": None,
        "finish_timeout": None,
        "block_threshold": 10,
        "block_interval": 1.0,
        "block_for": 3600.0,
        "log_blocks": 0,
        "keep_dispatched": True,
        "max_waiting_bytes": 256 * 1024 * 1024,
        "redis_url": None,
        "key_prefix": None,
        "lease": 30.0,
        "dispatch_lease": 300.0,
        "sweep_interval": 1.0,
        "publish_grace": 5.0,
        "store_wait": 10.0,
        "tombstone_ttl": 86_400.0,
        "offer_timeout": 60.0,
        "claim_lease": 5.0,
        "progress_keep": 100,
        "progress_ttl": 600.0,
        "progress_mirror": True,
    }


def test_what_an_app_sets_is_read(make_app: Callable[..., Celery]) -> None:
    """A setting of the app replaces the default."""
    app = make_app(bgtask_lease=60, bgtask_when_full="wait")

    settings = read_settings(app)

    assert settings.lease == 60
    assert settings.when_full == "wait"


def test_settings_may_come_from_a_namespace() -> None:
    """Django's CELERY_BGTASK_… is the same setting."""
    app = Celery("django", set_as_current=False)
    app.config_from_object({"CELERY_BGTASK_MAX_PER_KEY": 7}, namespace="CELERY")

    assert read_settings(app).max_per_key == 7


BAD = [
    ("accept_timeout", 0),
    ("accept_timeout", -1),
    ("accept_timeout", float("nan")),
    ("accept_timeout", float("inf")),
    ("accept_timeout", "5"),
    ("accept_timeout", True),
    ("finish_timeout", 0),
    ("finish_timeout", -0.5),
    ("finish_timeout", float("nan")),
    ("finish_timeout", [5]),
    ("max_per_key", 0),
    ("max_per_key", -2),
    ("max_per_key", True),
    ("max_per_key", "5"),
    ("max_per_key", 1.5),
    ("when_full", "drop"),
    ("when_full", None),
    ("when_full", []),
    ("max_waiting_per_key", 0),
    ("max_waiting_per_key", -1),
    ("max_waiting_per_key", None),
    ("max_payload_size", 0),
    ("max_payload_size", False),
    ("block_threshold", 0),
    ("block_threshold", True),
    ("block_interval", 0),
    ("block_for", None),
    ("block_for", math.inf),
    ("log_blocks", -1),
    ("log_blocks", True),
    ("log_blocks", None),
    ("keep_dispatched", 1),
    ("keep_dispatched", None),
    ("max_waiting_bytes", "1M"),
    ("redis_url", ""),
    ("redis_url", 6379),
    ("key_prefix", ""),
    ("key_prefix", b"x"),
    ("lease", 0),
    ("lease", -1),
    ("lease", math.inf),
    ("lease", math.nan),
    ("lease", "30"),
    ("lease", True),
    ("dispatch_lease", None),
    ("sweep_interval", 0),
    ("publish_grace", -0.1),
    ("store_wait", "x"),
    ("tombstone_ttl", 0),
    ("offer_timeout", 0),
    ("offer_timeout", None),
    ("claim_lease", 0),
    ("claim_lease", "5"),
    ("progress_keep", 0),
    ("progress_ttl", 0),
    ("progress_mirror", "yes"),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=repr)
def test_a_wrong_value_is_refused(
    name: str, value: Any, make_app: Callable[..., Celery]
) -> None:
    """The error names the setting as it was written, its value and what it must be."""
    app = make_app(**{f"bgtask_{name}": value})

    with pytest.raises(ImproperlyConfigured) as caught:
        read_settings(app)

    assert f"bgtask_{name} must be " in str(caught.value)
    assert repr(value) in str(caught.value)


def test_every_setting_has_a_wrong_value_in_this_test() -> None:
    """The table above leaves none out."""
    assert {name for name, _ in BAD} == {setting.name for setting in SETTINGS}


@pytest.mark.parametrize("limit", [1, 5, -1, None, len])
def test_a_limit_may_be_a_number_none_or_a_callable(
    limit: Any, make_app: Callable[..., Celery]
) -> None:
    """-1 and None mean no limit; a callable is asked for each key."""
    assert read_settings(make_app(bgtask_max_per_key=limit)).max_per_key == limit


def test_a_sweep_comes_twelve_times_in_a_lease(make_app: Callable[..., Celery]) -> None:
    """A longer interval would take a late sweep for a store that was away."""
    read_settings(make_app(bgtask_lease=12, bgtask_sweep_interval=1))

    with pytest.raises(ImproperlyConfigured, match="at most a twelfth of bgtask_lease"):
        read_settings(make_app(bgtask_lease=11.9, bgtask_sweep_interval=1))


@pytest.mark.parametrize("name", ["bgtask_leese", "CELERY_BGTASK_LEESE"])
def test_a_misspelled_setting_is_refused(name: str) -> None:
    """What would do nothing is an error, with what was meant."""
    app = Celery("typo", set_as_current=False)
    prefix = "CELERY" if name.isupper() else None
    app.config_from_object({name: 5}, namespace=prefix)

    with pytest.raises(ImproperlyConfigured, match="did you mean bgtask_lease"):
        read_settings(app)
