"""What is told of a task, and how it travels."""

from __future__ import annotations

import enum
import json
import pickle
from decimal import Decimal
from typing import Any

import pytest

from celery_bgtask import Ended, Progress
from celery_bgtask.events import decode, encode_end, encode_progress, text_of


#: Anything that JSON can say, with all that makes parsers stumble.
AWKWARD = {
    "text": 'ü "quoted" \\ \n\t {braces} 🎉 \x7f \u2028',
    "numbers": [0, -1, 1.5, 1e300, 2**63],
    "none": None,
    "nested": {"a": [{"b": []}], "": ""},
    "flag": True,
    "ключ 値": "значение",
    # What the envelope calls its own.
    "id": "x",
    "state": "SUCCESS",
    "seq": 7,
}


def sent(text: str, *, seq: int = 3, ms: int = 1_700_000_000_123) -> Any:
    """The event that arrives when *text* is sent."""
    return decode(f"{seq} {ms} {text}".encode())


def encode(
    current: Any = None,
    total: Any = None,
    description: Any = "",
    **data: Any,
) -> str:
    """The JSON of a report of the task "t"."""
    return encode_progress(
        "t", 2, current=current, total=total, description=description, data=data
    )


def test_a_report_arrives_as_it_was_sent() -> None:
    """Number and time are the server's, all else the task's."""
    progress = sent(encode(3, 4.0, "Ärger mit {x}", **AWKWARD))

    assert progress == Progress(
        task_id="t",
        attempt=2,
        seq=3,
        current=3,
        total=4.0,
        description="Ärger mit {x}",
        data=AWKWARD,
        timestamp=1_700_000_000.123,
    )


def test_non_ascii_is_not_blown_up() -> None:
    """A letter of another alphabet takes the bytes it has, not six."""
    assert len(encode(description="я" * 1000).encode()) < 2200


@pytest.mark.parametrize(
    ("current", "total", "percent"),
    [
        (1, 4, 25.0),
        (4, 4, 100.0),
        (None, 4, 0.0),
        (3, None, 0.0),
        (None, None, 0.0),
        (3, 0, 0.0),
        (0.5, 1, 50.0),
    ],
)
def test_percent(current: Any, total: Any, percent: float) -> None:
    """A float, 0.0 while nobody knows the total."""
    progress = sent(encode(current, total))

    assert progress.percent == percent
    assert isinstance(progress.percent, float)


def test_events_are_values() -> None:
    """They compare, cannot be changed, and go through pickle."""
    progress, end = sent(encode(1, 2, x=[1])), sent(encode_end("t", 1, state="SUCCESS"))

    for event in (progress, end):
        assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301 - our own
        with pytest.raises(AttributeError):
            event.seq = 9


class Color(enum.Enum):
    """No JSON."""

    RED = 1


@pytest.mark.parametrize(
    "value",
    [{1, 2}, b"bytes", object(), Color.RED, Decimal(1), 1 + 2j, {("a",): 1}],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_json_is_an_error_that_says_so(value: Any) -> None:
    """A TypeError, with what it is about."""
    with pytest.raises(
        TypeError, match=r"progress: what is reported must be JSON"
    ) as e:
        encode(1, 2, given=[value])

    assert "given" in str(e.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(value: float) -> None:
    """JSON has no word for them."""
    with pytest.raises(ValueError, match=r"progress: what is reported must be JSON"):
        encode(x=value)
    with pytest.raises(ValueError, match=r"progress: current must be finite, not"):
        encode(value)
    with pytest.raises(ValueError, match=r"progress: total must be finite, not"):
        encode(1, value)


def test_what_contains_itself_is_an_error() -> None:
    """It would never end."""
    endless: list[Any] = []
    endless.append(endless)

    with pytest.raises(ValueError, match=r"progress: .*[Cc]ircular"):
        encode(x=endless)


def test_half_a_surrogate_pair_is_an_error_that_says_so() -> None:
    """Names of files may have one; it is no UTF-8."""
    with pytest.raises(ValueError, match=r"progress: what is reported must be JSON"):
        encode(description="file-\udcff")


def test_an_error_does_not_repeat_all_that_was_reported() -> None:
    """It goes into logs and results."""
    with pytest.raises(TypeError) as caught:
        encode(rows=["x" * 100] * 10_000, wrong={1})

    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("value", ["3", True, [1], Decimal(1)])
def test_what_counts_is_a_number(value: Any) -> None:
    """Text and flags are a mistake."""
    with pytest.raises(TypeError, match=r"progress: current must be a number, not"):
        encode(value)
    with pytest.raises(TypeError, match=r"progress: total must be a number, not"):
        encode(1, value)


@pytest.mark.parametrize("value", [None, 3, b"x"])
def test_a_description_is_a_text(value: Any) -> None:
    """Not whatever was at hand."""
    with pytest.raises(TypeError, match=r"progress: description must be a text, not"):
        encode(1, 2, value)


def test_an_end_arrives_as_it_was_sent() -> None:
    """State, type and text of the error; never the value."""
    error = KeyError("ключ")

    end = sent(encode_end("t", 2, state="FAILURE", error=error))

    assert end == Ended(
        "t", 2, 3, "FAILURE", "KeyError", "'ключ'", timestamp=1_700_000_000.123
    )
    assert not end.is_success
    assert sent(encode_end("t", 2, state="SUCCESS")).is_success


def test_the_end_that_only_the_result_backend_knows() -> None:
    """The same, without a number."""
    end = Ended.of("t", state="FAILURE", error=ValueError("why"))

    assert (end.state, end.error, end.text) == ("FAILURE", "ValueError", "why")
    assert Ended.of("t", state="SUCCESS", error=None).is_success


class Mute(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("short"), "short"),
        (ValueError(), ""),
        (ValueError("x" * 1001), "x" * 999 + "…"),
        (ValueError("x" * 1000), "x" * 1000),
        (ValueError("half \udcff"), "half ?"),
        (Mute(), "(the error cannot say)"),
    ],
)
def test_the_text_of_an_error(error: Exception, text: str) -> None:
    """Whatever a user's class makes of it: short enough, and UTF-8."""
    assert text_of(error) == text
    assert sent(encode_end("t", 1, state="FAILURE", error=error)).text == text


def test_the_wire_form_is_stable() -> None:
    """Two neighbouring versions work on one store."""
    text = encode(1, 2, "d", x=1)

    assert json.loads(text) == {
        "id": "t",
        "attempt": 2,
        "current": 1,
        "total": 2,
        "description": "d",
        "data": {"x": 1},
    }
    assert json.loads(encode_end("t", 2, state="REVOKED")) == {
        "id": "t",
        "attempt": 2,
        "state": "REVOKED",
    }
