"""The header of a script is its contract: it must tell the truth."""

from __future__ import annotations

import re
from typing import Any

import pytest

from celery_bgtask import config, keys, states
from celery_bgtask.config import Settings
from celery_bgtask.message import Message
from celery_bgtask.scripts import Scripts
from celery_bgtask.scripts.loader import INCLUDE, INCLUDES, SCRIPTS, load_sources
from celery_bgtask.scripts.replies import Deadlines, Granted


SOURCES = load_sources()
VERBS = sorted(name for name in SOURCES if not name.startswith(INCLUDES))
NAMES = SOURCES[INCLUDES + "names"]
SETTINGS = Settings(**{setting.name: setting.default for setting in config.SETTINGS})
MESSAGE = Message(b"body", b"envelope")

#: A call of each method, by the name of its script.
CALLS: dict[str, Any] = {
    "submit": lambda s: s.submit(
        "id", "key", limit=1, wait=True, max_waiting=1, rank=0, retries=0, token="",
        delay=0, nonce="n", message=MESSAGE,
    ),
    "accept": lambda s: s.accept(
        "id", 1, "key", limit=1, token="t", worker="w", fresh=True, rank=0, retries=0,
    ),
    "release": lambda s: s.release("id", token="t", worker="w", attempt=1),
    "settle": lambda s: s.settle(
        "id", token="t", worker="w", attempt=1, remember=True, event="{}", owed=False,
    ),
    "withdraw": lambda s: s.withdraw("id", 1),
    "confirm": lambda s: s.confirm(
        [Granted("id", 1, Deadlines(), MESSAGE), Granted("b", 2, Deadlines(), MESSAGE)]
    ),
    "renew": lambda s: s.renew("w", ["id", "b"]),
    "sweep": lambda s: s.sweep("w"),
    "stats": lambda s: s.stats("key"),
    "keys": lambda s: next(s.all_keys()),
    "set_limit": lambda s: s.set_limit("key", 3, list),
    "pause": lambda s: s.pause(),
    "resume": lambda s: s.resume(list),
    "drain": lambda s: s.drain(list),
    "block": lambda s: s.block("key", reason="r", by="b", seconds=1, log_keep=0),
    "strike": lambda s: s.strike(
        "key", threshold=1, interval=1, reason="r", by="b", seconds=1, log_keep=0
    ),
    "unblock": lambda s: s.unblock("key", list),
    "blocks": lambda s: list(s.blocks()),
    "block_log": lambda s: s.block_log("key"),
    "holders": lambda s: s.holders("key"),
    "explain": lambda s: s.explain("id"),
    "free": lambda s: s.free("key", "id", "cancelled"),
    "redispatch": lambda s: s.redispatch("id", 1),
    "purge": lambda s: s.purge("key", "cancelled"),
    "audit": lambda s: list(s.audit([("*", "id"), ("key", "b")])),
    "repair": lambda s: s.repair("key", "id", 1),
    "recount": lambda s: s.recount(),
    "decide": lambda s: s.decide("id"),
    "cancel": lambda s: s.cancel("id", reason="why", terminate=True),
    "conclude": lambda s: s.conclude("id", 1, "{}", owed=False),
    "report": lambda s: s.report("id", "t", "{}"),
    "announce": lambda s: s.announce("id", "{}", owed=True),
    "history": lambda s: s.history(["id", "b"]),
    "forfeit": lambda s: s.forfeit("id", worker="w", attempt=1),
    "again": lambda s: s.again("id", 1, limit=1),
    "standing": lambda s: s.standing("id", "t"),
    "phase": lambda s: s.phase("id"),
    "enlist": lambda s: s.enlist("w@host", 30.0, taker="w", queues=["celery", "b"]),
    "leave": lambda s: s.leave("w@host", taker="w", queues=["celery", "b"]),
    "offers": lambda s: s.offers("w", 10, ["celery", "b"]),
    "claim": lambda s: s.claim("id", "w"),
    "unclaim": lambda s: s.unclaim("id", "w"),
    "ignore": lambda s: s.ignore("id", "w"),
    "join": lambda s: s.join("id", "w@host", 1, "{}"),
    "answer": lambda s: s.answer("id", "{}"),
}  # fmt: skip
#: A key as the store describes it.
KEY = [b"key", 0, 0, 0, None, None, 0, None, None, None]
REPLIES: dict[str, Any] = {
    "submit": [b"parked", 1, 0, 1, 1, 0, 0, 0],
    "accept": [b"started", 1],
    "release": [b"released"],
    "withdraw": [],
    "renew": [],
    "sweep": [1, [], [], []],
    "decide": [b"", 0],
    "cancel": [b"waiting", b""],
    "conclude": 1,
    "again": [],
    "forfeit": 1,
    "standing": [1, b""],
    "report": [1, b""],
    "announce": 1,
    "history": [b"running", 0, [], b"", 0, []],
    "phase": [b"running", b"key", 0],
    "stats": [0, KEY],
    "keys": [b"0", 0, KEY],
    "set_limit": [],
    "pause": 1,
    "resume": [1, b""],
    "drain": [b""],
    "block": 1,
    "strike": b"counted",
    "unblock": [1],
    "blocks": [b"0", 0],
    "block_log": [0],
    "holders": [0],
    "explain": [0, None, [None] * 10],
    "free": [b"running"],
    "redispatch": [b"dispatched"],
    "purge": [[], []],
    "audit": [0],
    "repair": [],
    "recount": 0,
    "enlist": [1],
    "offers": [],
    "claim": [],
    "unclaim": [],
    "leave": [],
    "ignore": [],
    "join": 1,
    "answer": 1,
}


class RecordingLink:
    """Stands in for the store: notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, list[Any]]] = []
        self.db = 3

    def run(self, script: Any, keys: Any, args: Any) -> Any:
        """Note the call, and answer as the server would."""
        self.calls.append((script.name, keys, list(args)))
        return REPLIES[script.name]

    def send(self, script: Any, keys: Any, args: Any) -> None:
        """Note the call."""
        self.calls.append((script.name, keys, list(args)))


def split(name: str) -> tuple[str, str]:
    """Return header and body of a script."""
    header, body = SOURCES[name].split("]]", 1)
    return header, body


def included(name: str) -> set[str]:
    """Return all that a script includes, and what that includes in turn."""
    direct = {
        part for line in INCLUDE.findall(SOURCES[name]) for part in line.split(", ")
    }
    return direct.union(*(included(INCLUDES + part) for part in direct))


def numbers(kind: str, text: str) -> set[int]:
    """Return the numbers by which *text* asks for keys or arguments."""
    return {int(n) for n in re.findall(rf"\b{kind}\[(\d+)\]", text)}


@pytest.mark.parametrize("name", VERBS)
def test_header_names_every_argument(name: str) -> None:
    """Header and body agree on ARGV, numbered from 1 without a gap."""
    header, body = split(name)

    named = numbers("ARGV", header)

    assert named == numbers("ARGV", body)
    assert named == set(range(1, len(named) + 1))


@pytest.mark.parametrize("name", VERBS)
def test_header_tells_of_a_list_at_the_end(name: str) -> None:
    """ARGV[...] stands in the header if and only if the body loops over the rest."""
    header, body = split(name)

    starts = [int(n) for n in re.findall(r"for \w+ = (\d+), #ARGV", body)]

    assert ("ARGV[...]" in header) == ("#ARGV" in body)
    assert all(start == len(numbers("ARGV", header)) + 1 for start in starts)


@pytest.mark.parametrize("name", VERBS)
def test_header_names_the_keys(name: str) -> None:
    """The hash tag, and what channels begin with; what is included reads them."""
    header, body = split(name)

    publishes = "events" in included(name)
    assert numbers("KEYS", header) == ({1, 2} if publishes else {1})
    assert ("Emits " in header) <= publishes
    assert "KEYS[" not in body
    assert numbers("KEYS", NAMES.split("]]", 1)[1]) == {1}
    assert numbers("KEYS", SOURCES[INCLUDES + "events"].split("]]", 1)[1]) == {2}


@pytest.mark.parametrize("name", VERBS)
def test_header_says_what_returns(name: str) -> None:
    """A header begins with a sentence and says what the script returns."""
    header, body = split(name)

    assert re.match(r"--\[\[\n[A-Z][^\n]+\.?\n", header)
    assert "\nReturns " in header
    assert "return " in body


@pytest.mark.parametrize("name", VERBS)
def test_python_passes_what_the_header_names(name: str) -> None:
    """The typed method passes as many arguments as the script reads."""
    link = RecordingLink()
    header, _ = split(name)

    CALLS[name](Scripts(link, prefix="p", scope="s", settings=SETTINGS))  # type: ignore[arg-type]

    [(called, keys, args)] = link.calls
    named = len(numbers("ARGV", header))
    assert (called, keys) == (name, ("{p:s}", "{p:s}@3"))
    assert len(args) > named if "ARGV[...]" in header else len(args) == named


def test_every_script_has_a_method() -> None:
    """No script is left without a caller, no method without a script."""
    assert set(SCRIPTS) == set(VERBS) == set(CALLS)


def test_the_table_of_names_is_what_the_scripts_build() -> None:
    """keys.py lists exactly the names that the Lua text spells out."""
    assert keys.__doc__
    rows = re.findall(r"^``([a-z-]+)(:<\w+>)?``", keys.__doc__, re.MULTILINE)
    listed = {name + (":" if of else "") for name, of in rows}

    built = set()
    for text in SOURCES.values():
        built |= set(re.findall(r'scope \.\. ":([a-z-]+:?)"', text))

    assert listed == built


def test_the_states_are_the_ones_the_scripts_write() -> None:
    """states.py lists exactly the values of a record's state."""
    listed = {getattr(states, name) for name in states.__all__}

    written = set()
    for text in SOURCES.values():
        written |= set(re.findall(r'(?:"HSET".*?|\{ )"state", "(\w+)"', text))
        written |= set(re.findall(r'\b(?:lapse|record)\([^"{\n]*"(\w+)"', text))

    assert listed == written


def test_scripts_read_the_clock_of_the_server_alone() -> None:
    """No script takes a time of day as an argument: clocks of clients drift."""
    assert 'redis.call("TIME")' in NAMES
    for name in VERBS:
        assert not re.search(r"ARGV\[\d+\]\s+now", split(name)[0]), name


def test_scripts_call_no_command_that_walks_all_keys() -> None:
    """KEYS and SCAN would make a script as slow as the database is large."""
    for name, text in SOURCES.items():
        assert not re.search(r'call\("(KEYS|SCAN|FLUSH\w+)"', text), name
