"""User text inside a name can neither split it nor be lost in it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_bgtask import keys


#: What a task key may be made of: any text that UTF-8 can write.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_a_quoted_text_comes_back(text: str) -> None:
    """Quoting loses nothing."""
    assert keys.unquote(keys.quote(text)) == text


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_a_quoted_text_is_safe_in_a_name(text: str) -> None:
    """It has no brace, no space, no control character and is plain ASCII."""
    quoted = keys.quote(text)

    assert quoted.isascii()
    assert quoted == "" or quoted.isprintable()
    assert not set(quoted) & set("{} \n\t\0*?[]\\\"'%") - {"%"}


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS)
def test_two_texts_have_two_names(one: str, other: str) -> None:
    """Different keys never share a name."""
    assert (keys.quote(one) == keys.quote(other)) == (one == other)


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("42", "42"),
        ("a b", "a%20b"),
        ("a{b}c", "a%7Bb%7Dc"),
        ("line\nbreak", "line%0Abreak"),
        ("nul\0", "nul%00"),
        ("Zoë", "Zo%C3%AB"),
        ("100%", "100%25"),
        ("user@example.com", "user@example.com"),
        ("a:b/c", "a:b/c"),
        ("", ""),
    ],
)
def test_what_names_look_like(text: str, quoted: str) -> None:
    """Plain text stays readable; what could do harm is percent-quoted."""
    assert keys.quote(text) == quoted


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS)
def test_a_scope_has_one_hash_tag(prefix: str, scope: str) -> None:
    """Whatever prefix and scope are, a cluster sees one tag around both."""
    tag = keys.scope_tag(prefix, scope)

    assert tag[0] == "{"
    assert tag[-1] == "}"
    assert not set(tag[1:-1]) & set("{}")


def test_names_show_prefix_and_scope() -> None:
    """An operator who lists keys sees whose they are."""
    assert keys.scope_tag("bgtask:shop", "shop.export") == "{bgtask:shop:shop.export}"
