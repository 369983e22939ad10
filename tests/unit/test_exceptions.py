"""Errors keep their type and their facts, wherever they travel."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from celery import Celery
from celery.backends.base import Backend
from celery.exceptions import ImproperlyConfigured
from kombu.exceptions import OperationalError
from kombu.utils import json

import celery_bgtask
from celery_bgtask import exceptions


ERRORS = [
    exceptions.LimitReached("42", 5, 5, 0),
    exceptions.LimitReached("Zoë {}\n", 1, 1, 10_000),
    exceptions.MissingTaskKey("shop.export", "the call has no 'customer_id'"),
    exceptions.PayloadTooLarge("shop.export", 2_000_000, 1_048_576),
    exceptions.AcceptTimeout("abc", 1.5, "slot"),
    exceptions.AcceptTimeout("abc", 30.0, "worker"),
    exceptions.FinishTimeout("abc", 60.0),
    exceptions.LeaseLost("abc"),
    exceptions.TaskCancelled("abc"),
    exceptions.TaskCancelled("abc", "the customer has gone: Zoë"),
    exceptions.TaskLost("abc"),
    exceptions.TaskNotAvailable("abc", "the store does not know it"),
    exceptions.KeyBlocked("42", "poison: Zoë", 3599.5),
    exceptions.KeyBlocked("42", "", None),
    exceptions.LimitReached("42", 0, 3, 0),
    exceptions.StoreUnavailable("redis://:**@host:6379/0", "ConnectionError: refused"),
]
IDS = [f"{type(error).__name__}-{number}" for number, error in enumerate(ERRORS)]


def test_every_error_is_public_and_in_this_test() -> None:
    """The package shows all of them, and the tests below leave none out."""
    names = set(exceptions.__all__)

    assert names <= set(celery_bgtask.__all__)
    assert names - {"BgTaskError", "ImproperlyConfigured"} == {
        type(error).__name__ for error in ERRORS
    }
    assert exceptions.ImproperlyConfigured is ImproperlyConfigured


def test_the_module_lists_its_errors() -> None:
    """The tree in the docstring is the tree of classes."""
    assert exceptions.__doc__
    for name in exceptions.__all__:
        assert name in exceptions.__doc__


@pytest.mark.parametrize("error", ERRORS, ids=IDS)
def test_an_error_is_one_of_ours(error: Exception) -> None:
    """One except clause catches all of them."""
    assert isinstance(error, exceptions.BgTaskError)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", ERRORS, ids=IDS)
def test_an_error_survives_pickle(error: Exception, protocol: int) -> None:
    """Through a pool's pipe it comes out as itself."""
    again = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301

    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert str(again) == str(error)


@pytest.mark.parametrize("error", ERRORS, ids=IDS)
def test_an_error_survives_a_copy(error: Exception) -> None:
    """A copy is the same error."""
    assert vars(copy.copy(error)) == vars(error)
    assert str(copy.deepcopy(error)) == str(error)


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
@pytest.mark.parametrize("error", ERRORS, ids=IDS)
def test_an_error_survives_a_result_backend(
    error: Exception, serializer: str, app: Celery
) -> None:
    """``result.get()`` raises it as itself, with its facts as attributes."""
    app.conf.update(result_serializer=serializer, accept_content=[serializer])
    backend = Backend(app, serializer=serializer, accept=[serializer])

    stored = backend.encode(backend.prepare_exception(error))
    again: Any = backend.exception_to_python(backend.decode(stored))

    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert str(again) == str(error)


@pytest.mark.parametrize("error", ERRORS, ids=IDS)
def test_the_facts_of_an_error_are_plain(error: Exception) -> None:
    """They can be written to a log as JSON, and are its arguments, in order."""
    facts = vars(error)

    assert json.loads(json.dumps(facts)) == facts
    assert tuple(facts.values()) == error.args


@pytest.mark.parametrize(
    ("error", "text"),
    [
        *zip(
            ERRORS,
            [
                "all 5 slots of '42' are taken",
                r"the only slot of 'Zoë {}\n' is taken, and 10000 tasks wait for one",
                "shop.export: the call has no 'customer_id'",
                (
                    "shop.export: the message has 2000000 bytes, max_payload_size is "
                    "1048576: pass a reference to the data, or raise the option"
                ),
                "task abc did not start within 1.5 s: it waited for a slot",
                "task abc did not start within 30 s: it waited for a worker",
                "task abc did not end within 60 s",
                "task abc has lost its lease: what it does is not stored",
                "task abc was cancelled",
                "task abc was cancelled: the customer has gone: Zoë",
                "task abc was lost with its worker",
                "task abc: the store does not know it",
                "'42' is blocked for another 3600 s: poison: Zoë",
                "'42' is blocked",
                "'42' is paused: it has no slots",
                (
                    "the store at redis://:**@host:6379/0 is unavailable: "
                    "ConnectionError: refused"
                ),
            ],
            strict=True,
        )
    ],
    ids=IDS,
)
def test_an_error_says_what_to_know(error: Exception, text: str) -> None:
    """One line that names the key or the task."""
    assert str(error) == text


def test_a_store_that_is_away_is_an_operational_error() -> None:
    """Who handles a broker that is away handles this too."""
    assert issubclass(exceptions.StoreUnavailable, OperationalError)
