"""From the arguments of a call to its key, or to a clear error."""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Callable
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from celery.exceptions import ImproperlyConfigured
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from celery_bgtask import MissingTaskKey, keys
from celery_bgtask.taskkey import MAX_KEY_BYTES, WHOLE_TASK, TaskKey, key_text


def key_of(
    function: Callable[..., Any], declared: Any, *args: Any, **kwargs: Any
) -> str:
    """The key of the call ``function(*args, **kwargs)``."""
    return TaskKey("t", declared, inspect.signature(function)).of(args, kwargs)


def export(customer_id, fmt="csv", *, page=1):
    """Take what most tasks take."""


def anything(**kwargs):
    """Take anything by name."""


def one(order):
    """Take one argument."""


def many(*orders):
    """Take any number of arguments."""


def many_and_more(first, *rest, **more):
    """Take all there is."""


class Order(BaseModel):
    """An argument with fields."""

    customer_id: int
    note: str = ""


class Colour(enum.Enum):
    """A choice of texts."""

    RED = "red"


class Number(enum.IntEnum):
    """A choice of numbers."""

    ONE = 1


@pytest.mark.parametrize(
    ("declared", "args", "kwargs", "key"),
    [
        ("customer_id", (42,), {}, "42"),
        ("customer_id", (), {"customer_id": 42}, "42"),
        ("customer_id", (42, "pdf"), {"page": 2}, "42"),
        ("fmt", (42,), {}, "csv"),
        ("fmt", (42, "pdf"), {}, "pdf"),
        ("page", (42,), {}, "1"),
        ("page", (42,), {"page": 7}, "7"),
        (lambda a: f"{a['customer_id']}/{a['fmt']}", (42,), {}, "42/csv"),
        (lambda a: a["page"], (42,), {"page": 3}, "3"),
        (None, (42,), {}, WHOLE_TASK),
        (None, (), {"no": "such"}, WHOLE_TASK),
    ],
)
def test_the_key_is_an_argument_as_bound(
    declared: Any, args: Any, kwargs: Any, key: str
) -> None:
    """Positional, keyword and default: however it is passed, it is one key."""
    assert key_of(export, declared, *args, **kwargs) == key


def test_the_key_may_be_inside_kwargs() -> None:
    """A name that ``**kwargs`` collects is an argument like others."""
    assert key_of(anything, "customer_id", customer_id=7, other=1) == "7"
    assert key_of(many_and_more, "kid", 1, 2, 3, kid="x") == "x"
    assert key_of(many_and_more, lambda a: a["kid"], 1, kid="x") == "x"


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (one, {"customer_id": 42}),
        (one, Order(customer_id=42)),
        (many, {"customer_id": 42}),
        (many, Order(customer_id=42)),
        (anything, None),
    ],
)
def test_the_key_may_be_a_field_of_the_only_argument(
    function: Any, argument: Any
) -> None:
    """A mapping or a pydantic model that is all of a call carries the key."""
    call = ((argument,), {}) if argument else ((), {"order": {"customer_id": 42}})

    assert key_of(function, "customer_id", *call[0], **call[1]) == "42"


def test_a_parameter_goes_before_a_field() -> None:
    """A field is looked for only where no parameter has the name."""
    assert key_of(one, "order", "x") == "x"

    with pytest.raises(MissingTaskKey, match="cannot be a dict"):
        key_of(one, "order", {"order": "x"})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        (0, "0"),
        (-5, "-5"),
        (10**40, str(10**40)),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.50"), "1.50"),
        (date(2024, 2, 29), "2024-02-29"),
        (datetime(2024, 2, 29, 12, tzinfo=timezone.utc), "2024-02-29 12:00:00+00:00"),
        (Colour.RED, "red"),
        (Number.ONE, "1"),
        (" ", " "),
        ("{}", "{}"),
        ("a\nb\0c", "a\nb\0c"),
        ("Zoë ☃ 𝄞", "Zoë ☃ 𝄞"),
        ("x" * MAX_KEY_BYTES, "x" * MAX_KEY_BYTES),
        ("ë" * (MAX_KEY_BYTES // 2), "ë" * (MAX_KEY_BYTES // 2)),
    ],
)
def test_what_a_key_may_be(value: Any, text: str) -> None:
    """A key is the str() of what names one thing the same way each time."""
    assert key_text(value, task="t") == text


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        1.5,
        float("nan"),
        b"bytes",
        bytearray(b"x"),
        [1],
        (1,),
        {1},
        frozenset(),
        {"a": 1},
        object(),
        int,
        lambda: 1,
        1j,
        Ellipsis,
        Order(customer_id=1),
        dataclasses.make_dataclass("Point", ["x"])(1),
        enum.Enum("Odd", {"FLOAT": 1.5}).FLOAT,  # type: ignore[attr-defined]
        enum.Enum("Bit", {"ON": True}).ON,  # type: ignore[attr-defined]
    ],
    ids=lambda value: f"{type(value).__name__}-{value!r:.12}",
)
def test_what_a_key_cannot_be(value: Any) -> None:
    """What has no one spelling is refused, with its type and what to do."""
    with pytest.raises(MissingTaskKey) as caught:
        key_text(value, task="shop.export")

    assert caught.value.task == "shop.export"
    assert "make one with a callable" in str(caught.value)
    assert str(caught.value).startswith("shop.export: ")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "0 bytes"),
        ("x" * (MAX_KEY_BYTES + 1), "513 bytes"),
        ("ë" * (MAX_KEY_BYTES // 2 + 1), "514 bytes"),
        (10**MAX_KEY_BYTES, "513 bytes"),
        ("\ud800", "no valid text"),
        ("ok\udfff", "no valid text"),
    ],
    ids=["empty", "long", "long in UTF-8", "long int", "surrogate", "late surrogate"],
)
def test_a_key_has_a_length_and_is_text(value: Any, said: str) -> None:
    """Empty, huge and unwritable keys are refused; the error itself is short."""
    with pytest.raises(MissingTaskKey, match=said) as caught:
        key_text(value, task="t")

    assert len(str(caught.value).encode("utf-8", "replace")) < 400


def test_a_number_too_long_to_print_is_refused() -> None:
    """Python refuses to print an int of more than 4300 digits."""
    with pytest.raises(MissingTaskKey):
        key_text(10**5000, task="t")


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=600))
def test_any_text_is_a_key_or_a_clear_error(text: str) -> None:
    """A key comes back unchanged from a name in Redis; anything else is refused."""
    try:
        key = key_text(text, task="t")
    except MissingTaskKey:
        writable = not any("\ud800" <= char <= "\udfff" for char in text)
        assert not (writable and 0 < len(text.encode()) <= MAX_KEY_BYTES)
    else:
        assert keys.unquote(keys.quote(key)) == key == text


@pytest.mark.parametrize(
    ("function", "declared", "args", "kwargs", "said"),
    [
        (anything, "kid", (), {"other": 1, "more": 2}, "the call has no 'kid'"),
        (anything, "kid", (), {}, "the call has no 'kid'"),
        (one, "kid", ({"no": 1},), {}, "the call has no 'kid'"),
        (one, "kid", (5,), {}, "the call has no 'kid'"),
        (many, "kid", ({"kid": 1}, {"kid": 2}), {}, "the call has no 'kid'"),
        (export, "customer_id", (), {}, "the arguments do not fit: missing"),
        (export, "customer_id", (1, 2, 3), {}, "the arguments do not fit: too many"),
        (export, "customer_id", (1,), {"x": 1}, "the arguments do not fit: got an"),
        (export, "customer_id", (None,), {}, "cannot be a NoneType"),
        (export, lambda a: a["oops"], (1,), {}, "callable raised KeyError('oops')"),
        (export, lambda a: None, (1,), {}, "cannot be a NoneType"),
        (export, lambda: 1, (1,), {}, "callable raised TypeError"),
    ],
)
def test_a_call_without_a_key_is_refused(
    function: Any, declared: Any, args: Any, kwargs: Any, said: str
) -> None:
    """The error says which name was looked for, or what the callable did."""
    with pytest.raises(MissingTaskKey) as caught:
        key_of(function, declared, *args, **kwargs)

    assert said in str(caught.value)


@pytest.mark.parametrize(
    "function", [export, lambda: None, lambda a, b: None], ids=["three", "none", "two"]
)
def test_a_name_that_no_call_can_have_is_refused(function: Any) -> None:
    """A typo in task_key shows when the task is made, not when it is called."""
    with pytest.raises(ImproperlyConfigured, match="'custmer_id' is no parameter of t"):
        TaskKey("t", "custmer_id", inspect.signature(function))


@pytest.mark.parametrize("declared", [5, ["a"], b"x"])
def test_a_task_key_is_a_name_or_a_callable(declared: Any) -> None:
    """Anything else is refused."""
    with pytest.raises(ImproperlyConfigured, match="name of a parameter or a callable"):
        TaskKey("t", declared, inspect.signature(export))


def test_the_callable_gets_a_copy() -> None:
    """What a key callable does to its arguments does not reach the call."""
    kwargs = {"customer_id": 1, "page": 2}

    key_of(export, lambda a: a.pop("customer_id"), **kwargs)

    assert kwargs == {"customer_id": 1, "page": 2}
