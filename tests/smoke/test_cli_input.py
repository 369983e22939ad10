"""``celery bgtask`` and what it must not do: guess, leak, forge, fall over."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from celery_bgtask.testing import EmbeddedServer, embedded_server
from tests.smoke.cli_tasks import MODULE
from tests.smoke.command_line import CommandLine, Said
from tests.smoke.nodes import SmokeSetup


EXPORT = ("--task", "export")

SECRET = "s3cr3t-of-the-store"

WEIRD = {
    "spaces": "two  words ",
    "emoji": "🐇 café",
    "escape": "a\x1b[31mred\x1b[0m",
    "braces": "{bgtask:x}:slots:1",
    "newline": "two\nlines\r",
    "quotes": 'it\'s "one" \\ $HOME `id`',
    "bidi": "abc\u202etxt.exe",
    "dash": "--all",
    "bell": "\x07\x9b31m",
    "long": "k" * 300,
}

#: What nobody may say, and a part of the answer.
WRONG = {
    "an unknown task": ("keys --task exprt", "no limited task exprt"),
    "no task of several": ("limit 42 3", "say which one with --task"),
    "a task and all": ("pause --task export --all", "not both"),
    "no task for all": ("drain --yes", "say which one with --task"),
    "a key of nothing": ("show nobody --task export", "idle, or mistyped"),
    "a key of nothing to purge": ("purge x --task export --yes", "idle, or mistyped"),
    "a key of nothing to unblock": ("unblock x --task export", "idle, or mistyped"),
    "a key of nothing to reset": ("limit x reset --task export", "idle, or mistyped"),
    "a key that is empty": ("block '' --task export", "1 to 512"),
    "a key that is too long": (f"block {'k' * 513} --task export", "1 to 512"),
    "a key of a task without": ("block 42 --task report", "write '' in place"),
    "an unknown id": ("explain no-such-id", "does not know"),
    "an id to cancel": ("cancel no-such-id", "Nothing was changed"),
    "an id to send": ("redispatch no-such-id", "Nothing was changed"),
    "an id to free": ("release 42 no-id --task export --yes", "Nothing was changed"),
    "a limit below 0": ("limit 42 -1 --task export", "-1 is no limit"),
    "a limit of parts": ("limit 42 2.5 --task export", "2.5 is no limit"),
    "a limit in words": ("limit 42 many --task export", "many is no limit"),
    "a limit too far": ("limit 42 99999999999 --task export", "is no limit"),
    "no limit at all": ("limit 42 --task export", "Missing argument"),
    "no time": ("block 42 --for soon --task export", "soon is no time"),
    "no time at all": ("block 42 --for 0 --task export", "0 is no time"),
    "no count": ("keys --limit 0", "--limit"),
    "an unknown order": ("keys --sort size", "size"),
    "an unknown option": ("check --jsno", "--jsno"),
    "an unknown command": ("kyes", "kyes"),
}


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[()]:
    """None is needed."""
    return ()


@pytest.fixture
def cli(cli: CommandLine) -> CommandLine:
    """The command line of an app with its tasks, though no worker runs them."""
    cli.conf["imports"] = [MODULE]
    return cli


@pytest.fixture
def export(smoke: SmokeSetup) -> Any:
    """The task with keys."""
    return smoke.app.tasks[f"{MODULE}.export"]


@pytest.fixture
def used(smoke: SmokeSetup, export: Any) -> Iterator[Redis]:
    """The store, with something in it that could be changed."""
    export.control.set_limit("limited", 3)
    export.control.block("blocked", "for a reason")
    export.delay("busy")
    with Redis.from_url(smoke.conf["bgtask_redis_url"]) as client:
        yield client
        client.flushdb()  # no worker is there to conclude it


def contents(client: Redis) -> dict[Any, Any]:
    """Return all that the store has."""
    return {name: client.dump(name) for name in client.scan_iter()}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_told_and_nothing_is_changed(
    cli: CommandLine, used: Redis, wrong: str
) -> None:
    """Exit code 2, one sentence, the store as it was."""
    line, sentence = WRONG[wrong]
    before = contents(used)

    said = cli(*shlex.split(line), code=2)

    assert len(before) > 5
    assert contents(used) == before
    assert said.out == ""
    assert sentence in said.err
    assert len(said.err.strip().splitlines()[-1]) < 700


@pytest.mark.parametrize("kind", WEIRD)
def test_a_weird_key_is_shown_as_one_types_it_and_is_exact_in_json(
    smoke: SmokeSetup, cli: CommandLine, export: Any, kind: str
) -> None:
    """Nothing in it reaches the terminal; the shown word is the key, for a shell."""
    key = WEIRD[kind]
    named = ["--", key] if key.startswith("-") else [key]
    cli("block", *EXPORT, "--reason", key, *named)
    cli("limit", *EXPORT, "--", key, "7")

    said = [
        cli("keys", *EXPORT),
        cli("blocked"),
        cli("show", *EXPORT, *named),
        cli("top", "--count", "1"),
    ]
    for one in said:
        assert [char for char in one.out if not char.isprintable()] == (
            ["\n"] * one.out.count("\n")
        )
    word = next(line for line in said[0].lines if "blocked" in line).split("blocked ")[
        1
    ]
    assert typed(word.strip()) == key
    hint = said[2].lines[-1].strip().strip("`")
    assert cli("keys", "--json").json[0]["key"] == key
    (block,) = cli("blocked", "--json").json
    assert (block["key"], block["reason"]) == (key, key)

    ended = cli(*arguments(hint))
    assert "is not blocked any more" in ended.out
    cli("limit", *EXPORT, "--", key, "reset")
    assert not list(export.control.keys())


def typed(word: str) -> str:
    """Return what a shell makes of *word*."""
    command = ["bash", "-c", f"printf %s {word}"]
    environment = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    return done.stdout.decode()


def arguments(command: str) -> list[str]:
    """Return the arguments of a command line that was shown, as a shell has them."""
    command = command.partition(" bgtask ")[2]
    lines = ["bash", "-c", f"printf '%s\\0' {command}"]
    environment = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(lines, capture_output=True, check=True, env=environment)
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.timeout(180)
def test_a_thousand_keys_are_read_a_page_at_a_time(
    smoke: SmokeSetup, cli: CommandLine, export: Any
) -> None:
    """Each once, in 80 columns; a few are had without reading the others."""
    names = {f"customer-{number:04}" for number in range(1000)}
    for name in names:
        export.control.set_limit(name, 7)
    export.control.block("customer-0500")
    try:
        listed = cli("keys", *EXPORT)
        assert {line.split()[-1] for line in listed.lines[1:-2]} == names
        assert len(listed.lines) == 1000 + 3
        assert max(map(len, listed.lines)) <= 80
        assert listed.lines[-1] == (
            "1000 keys: 0 running, 0 dispatched, 0 waiting; 1 blocked"
        )

        by_name = cli("keys", "--sort", "key", "--limit", "3", "--json").json
        assert [line["key"] for line in by_name] == [
            f"customer-{n:04}" for n in range(3)
        ]

        before = smoke.store.info("commandstats")["cmdstat_evalsha"]["calls"]
        few = cli("keys", *EXPORT, "--limit", "5")
        after = smoke.store.info("commandstats")["cmdstat_evalsha"]["calls"]
        assert few.lines[-1] == "5 keys shown; there are more"
        assert after - before < 5

        assert len(cli("top", "--count", "1").lines) <= 24
        assert len(cli("top", "--count", "1", "--limit", "3", *EXPORT).lines) <= 7
    finally:
        export.control.unblock("customer-0500")
        for name in names:
            export.control.reset_limit(name)


@pytest.fixture
def guarded(cli: CommandLine) -> Iterator[EmbeddedServer]:
    """A store with a password, for all of the app."""
    with embedded_server() as server:
        with Redis.from_url(server.url) as client:
            client.config_set("requirepass", SECRET)
        url = server.url.replace("redis://", f"redis://:{SECRET}@")
        names = ("broker_url", "result_backend", "bgtask_redis_url")
        cli.conf |= dict.fromkeys(names, url)
        yield server


@pytest.mark.timeout(180)
def test_no_password_is_shown(cli: CommandLine, guarded: EmbeddedServer) -> None:
    """Not when all is well, not when the password is wrong, not without a store."""
    look = [("keys",), ("top", "--count", "1"), ("show", "42", *EXPORT), ("check",)]
    act = [("pause", "--all"), ("block", "42", *EXPORT), ("drain", "--all", "--yes")]
    for line in (*act, *look, ("sweep",), ("blocked",), ("repair",)):
        cli(*line)
        cli(*line, "--json")
    cli.conf["bgtask_redis_url"] = cli.conf["bgtask_redis_url"].replace("s3", "S3")
    for line in look:
        is_denied(cli(*line, code=1))
    guarded.stop()
    for line in (look[0], *act):
        is_denied(cli(*line, code=1))

    said = "".join(cli.all_said)
    assert SECRET not in said
    assert SECRET.replace("s3", "S3") not in said


def is_denied(said: Said) -> None:
    """Assert that it says in one line which store it cannot use."""
    assert said.err.startswith("Error: the store at redis://:**@127.0.0.1:")
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_an_app_without_limited_tasks_says_what_to_name(cli: CommandLine) -> None:
    """Exit code 2 and the command as it should have been."""
    cli.conf["imports"] = []

    for command in ("keys", "check", "sweep", "pause"):
        assert f"celery -A proj bgtask {command}" in cli(command, code=2).err


def test_an_app_without_a_store_says_what_to_set(cli: CommandLine) -> None:
    """Exit code 1 and one line."""
    cli.conf |= {"bgtask_redis_url": None, "result_backend": "cache+memory://"}
    cli.conf["broker_url"] = "amqp://"

    said = cli("keys", code=1)

    assert "set bgtask_redis_url" in said.err
    assert len(said.err.splitlines()) == 1
