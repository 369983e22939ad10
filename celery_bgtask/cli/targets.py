"""Which tasks a command is about: named with --task, found by an id, or all."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import click

from ..control.control import Control
from ..exceptions import MissingTaskKey
from ..extension import extension_of
from ..options import options_of
from ..taskkey import WHOLE_TASK, key_text
from .output import one_line, word


__all__ = ["Target", "all_targets", "chosen", "holder_of", "the_one"]


@dataclass(frozen=True)
class Target:
    """The tasks of one scope, and the way to control them.

    Attributes:
        scope: Their scope; mostly the name of the one task.
        title: The end of it that no other scope of the app has.
        tasks: Names of the tasks.
        control: Of one of them, which is control of all.
        has_keys: Whether a key is to be named.
        program: How this command line was called, up to the command.
        is_only: Whether the app has no other scope.
    """

    scope: str
    title: str
    tasks: tuple[str, ...]
    control: Control
    has_keys: bool
    program: str
    is_only: bool

    def __str__(self) -> str:
        return word(self.scope)

    @property
    def others(self) -> str:
        """Return a part of a sentence that names all tasks, if they are several."""
        if len(self.tasks) == 1:
            return ""
        return f" (shared by {', '.join(word(task) for task in self.tasks)})"

    def key(self, text: str) -> str | None:
        """Return the argument KEY as the control takes it.

        Raises:
            click.BadParameter: If the task can have no such key.
        """
        if not self.has_keys:
            if text != WHOLE_TASK:
                raise click.BadParameter(
                    f"{self} has no keys, its limit holds for the task as a whole: "
                    "write '' in place of a key"
                )
            return None
        try:
            return key_text(text, task=self.scope)
        except MissingTaskKey as exc:
            raise click.BadParameter(one_line(exc.reason)) from exc

    def command(self, name: str, *arguments: str) -> str:
        """Return a command line for this target, to be typed as it stands."""
        words = [self.program, name]
        if not self.is_only:
            words += ["--task", word(self.title)]
        if any(argument.startswith("-") for argument in arguments):
            words.append("--")
        return " ".join([*words, *map(word, arguments)])

    def typed(self, command: str) -> str:
        """Return a command of ours as it is typed for this app."""
        words = command.removeprefix("celery bgtask ")
        return command if words == command else f"{self.program} {words}"


def all_targets(ctx: click.Context) -> list[Target]:
    """Return all limited tasks of the app, by scope.

    Raises:
        click.UsageError: If it has none.
    """
    app = ctx.obj.app
    app.loader.import_default_modules()
    app.finalize()
    scopes: dict[str, list[Any]] = {}
    for name in sorted(app.tasks):
        task = app.tasks[name]
        if hasattr(task, "bgtask"):
            scopes.setdefault(options_of(task).scope, []).append(task)
    if not scopes:
        raise click.UsageError(
            "this app has no limited tasks; name the app: "
            f"celery -A proj bgtask {ctx.info_name}"
        )
    return [
        Target(
            scope=scope,
            title=title_of(scope, scopes),
            tasks=tuple(task.name for task in tasks),
            control=Control(tasks[0]),
            has_keys=options_of(tasks[0]).key.declared is not None,
            program=program(ctx),
            is_only=len(scopes) == 1,
        )
        for scope, tasks in sorted(scopes.items())
    ]


def chosen(ctx: click.Context, name: str | None) -> list[Target]:
    """Return the target called *name*, all of them without a name.

    Raises:
        click.UsageError: If none is called so, or several are.
    """
    targets = all_targets(ctx)
    if name is None:
        return targets
    found = [t for t in targets if name == t.scope or name in t.tasks]
    found = found or [t for t in targets if ends_with(name, (t.scope, *t.tasks))]
    if len(found) == 1:
        return found
    known = sorted({name for t in targets for name in (t.scope, *t.tasks)})
    if found:
        which = ", ".join(map(str, found))
        raise click.UsageError(f"--task {word(name)} may be any of {which}: say more")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {word(near[0])}?" if near else ""
    raise click.UsageError(
        f"the app has no limited task {word(name)}.{hint} It has: "
        f"{', '.join(map(word, known))}"
    )


def the_one(ctx: click.Context, name: str | None) -> Target:
    """Return the target called *name*, or the only one.

    Raises:
        click.UsageError: If it is not clear which one is meant.
    """
    found = chosen(ctx, name)
    if len(found) == 1:
        return found[0]
    raise click.UsageError(
        "the app has several limited tasks; say which one with --task: "
        + ", ".join(word(target.title) for target in found)
    )


def holder_of(ctx: click.Context, task_id: str, name: str | None) -> Target | None:
    """Return the target that knows the task *task_id*, ``None`` if none does."""
    extension = extension_of(ctx.obj.app)
    for target in chosen(ctx, name):
        if extension.scripts(target.scope).phase(task_id).state:
            return target
    return None


def title_of(scope: str, scopes: Iterable[str]) -> str:
    """Return the shortest dotted end of *scope* that no other scope ends with."""
    parts = scope.split(".")
    for size in range(1, len(parts)):
        title = ".".join(parts[-size:])
        if not any(ends_with(title, (o,)) or o == title for o in scopes if o != scope):
            return title
    return scope


def ends_with(end: str, names: Iterable[str]) -> bool:
    """Tell whether *end* is the last part, or parts, of a dotted name."""
    return any(name.endswith(f".{end}") for name in names)


def program(ctx: click.Context) -> str:
    """Return how this command line was called, up to the command's name."""
    root = ctx.find_root()
    app = root.params.get("app")
    source = root.get_parameter_source("app")
    named = source is click.core.ParameterSource.COMMANDLINE and isinstance(app, str)
    return f"celery -A {word(str(app))} bgtask" if named else "celery bgtask"
