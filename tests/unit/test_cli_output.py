"""What the command line prints is safe, exact and as wide as was said."""

from __future__ import annotations

import json
import math
import subprocess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_bgtask.cli.output import echo_json, one_line, span, table, word
from celery_bgtask.cli.targets import title_of


#: What an argument of a command can be; the odd ones more often.
WORDS = st.text(
    st.one_of(
        st.characters(exclude_characters="\0", codec="utf-8"),
        st.sampled_from("\x1b\n\t'\"\\$`!* -\x80\x9b\u202e\u200b🐇é0aF"),
    ),
    max_size=30,
)


@settings(max_examples=20, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=40))
def test_a_shell_makes_of_a_word_what_it_was(texts: list[str]) -> None:
    """Whatever it is, and nothing of it would act on a terminal."""
    words = [word(text) for text in texts]

    done = subprocess.run(
        ["/bin/bash", "-c", f"printf '%s\\0' {' '.join(words)}"],
        capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"},
    )  # fmt: skip

    assert done.stdout.decode().split("\0")[:-1] == texts
    assert all(one.isprintable() for one in words)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("42", "42"),
        ("a@b.example:1/2_3+4,5%", "a@b.example:1/2_3+4,5%"),
        ("ключ", "ключ"),
        ("", "''"),
        ("a b", "'a b'"),
        ("it's", r"'it'\''s'"),
        ("back\\slash", r"'back\slash'"),
        ("\x1b[31m'", r"$'\x1b[31m\''"),
        ("a\nb", r"$'a\nb'"),
        ("\x07", r"$'\x07'"),
        ("\x9b1m", r"$'\u009b1m'"),
        ("\u202e", r"$'\u202e'"),
        ("\U000e0001", r"$'\U000e0001'"),
        ("\udc80", r"$'\udc80'"),
    ],
)
def test_a_word_looks_as_one_types_it(text: str, shown: str) -> None:
    """Plain keys stay as they are."""
    assert word(text) == shown


def test_a_sentence_keeps_its_words_and_nothing_else() -> None:
    """It is for reading, not for a shell: a backslash stays one."""
    assert one_line("a 'b' \\ c") == "a 'b' \\ c"
    assert one_line("a\x1b[0m\nb\x00") == r"a\x1b[0m\nb\x00"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "0s"), (0.9, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"),
        (3600, "1h00m"), (86_399, "23h59m"), (86_400, "1d00h"),
        (100 * 86_400 - 1, "99d23h"), (100 * 86_400, "100d"), (10**9, "11574d"),
    ],
)  # fmt: skip
def test_a_time_has_at_most_six_characters(seconds: float, shown: str) -> None:
    """A column is as wide as its widest time."""
    assert span(seconds) == shown
    assert len(shown) <= 6


def test_a_table_keeps_its_columns_whatever_is_in_the_last() -> None:
    """It comes line by line, and says so if there is nothing."""
    columns = [("N", 3), ("STATE", -6), ("KEY", 0)]
    rows = [["1", "\x1b[31mfull\x1b[0m", "k" * 300], ["12345", "-", "x"]]

    assert list(table(columns, rows, "none")) == [
        "  N  STATE   KEY",
        "  1  \x1b[31mfull\x1b[0m    " + "k" * 300,
        "12345  -       x",
    ]
    assert list(table(columns, [], "none")) == ["none"]

    def endless() -> Any:
        while True:
            yield ["1", "-", "x"]

    assert next(table(columns, endless(), "none")) == "  N  STATE   KEY"


@pytest.mark.parametrize(
    ("scope", "title"),
    [
        ("shop.mail.send", "mail.send"),
        ("shop.sms.send", "sms.send"),
        ("shop.export", "export"),
        ("send", "send"),
        ("messages", "messages"),
    ],
)
def test_a_title_is_the_shortest_end_that_is_clear(scope: str, title: str) -> None:
    """Whole parts of the dotted name."""
    scopes = ["shop.mail.send", "shop.sms.send", "shop.export", "send", "messages"]

    assert title_of(scope, scopes) == title


def test_what_is_endless_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON has no word for it, and a program shall not fall over one."""
    echo_json({"until": math.inf, "many": [math.nan, 1.5]}, scope="s")

    assert json.loads(capsys.readouterr().out) == {
        "scope": "s", "until": None, "many": [None, 1.5]
    }  # fmt: skip
