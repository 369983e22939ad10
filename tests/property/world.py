"""What the machine reads and keeps: messages, runs, and the scope itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from kombu.utils import json

from celery_bgtask.message import Message
from celery_bgtask.scripts.loader import make_script
from celery_bgtask.scripts.replies import Deadlines, Granted
from celery_bgtask.store import Link


NO_DEADLINES = Deadlines()

#: In place of an infinite time.
FAR = 10**18


DUMP = make_script(
    "dump",
    """
    local found = {}
    for _, name in ipairs(redis.call("KEYS", KEYS[1] .. ":*")) do
      local kind = redis.call("TYPE", name).ok
      local content
      if kind == "zset" then content = redis.call("ZRANGE", name, 0, -1, "WITHSCORES")
      elseif kind == "hash" then content = redis.call("HGETALL", name)
      elseif kind == "list" then content = redis.call("LRANGE", name, 0, -1)
      elseif kind == "set" then content = redis.call("SMEMBERS", name)
      else content = redis.call("GET", name) end
      found[#found + 1] = { name, redis.call("PTTL", name), content }
    end
    return { redis.call("TIME")[1], found }
    """,
)

PASS_TIME = make_script(
    "pass_time",
    """
    local ms = tonumber(ARGV[1])
    local indexes = redis.call("KEYS", KEYS[1] .. ":strikes:*")
    for _, name in ipairs(redis.call("KEYS", KEYS[1] .. ":takers:*")) do
      indexes[#indexes + 1] = name
    end
    for _, index in ipairs({ "leases", "outbox", "deadlines", "owed", "blocked",
      "workers", "unwanted" }) do
      indexes[#indexes + 1] = KEYS[1] .. ":" .. index
    end
    for _, index in ipairs(indexes) do
      for _, id in ipairs(redis.call("ZRANGE", index, 0, -1)) do
        redis.call("ZINCRBY", index, -ms, id)
      end
    end
    for _, name in ipairs(redis.call("KEYS", KEYS[1] .. ":task:*")) do
      for _, field in ipairs({ "clock", "start_by", "finish_by", "expires_at" }) do
        if redis.call("HEXISTS", name, field) == 1 then
          redis.call("HINCRBY", name, field, -ms)
        end
      end
    end
    local swept = redis.call("GET", KEYS[1] .. ":swept")
    if swept then
      redis.call("SET", KEYS[1] .. ":swept", string.format("%d", swept - ms), "KEEPTTL")
    end
    for _, name in ipairs(redis.call("KEYS", KEYS[1] .. ":*")) do
      local left = redis.call("PTTL", name)
      if left > ms then redis.call("PEXPIRE", name, left - ms)
      elseif left >= 0 then redis.call("DEL", name) end
    end
    return 1
    """,
)


@dataclass(frozen=True)
class Letter:
    """A message as the broker has it."""

    id: str
    attempt: int
    key: str
    retries: int
    rank: int
    limit: int
    serial: str
    late: bool
    keep: bool = False
    max_lost: int = 0
    copy: bool = False
    deadlines: Deadlines = NO_DEADLINES
    queue: str = ""  # to whose workers it is offered
    claimed: bool = False  # it has come so, and not from the broker

    @property
    def message(self) -> Message:
        """What the store is given to keep."""
        facts = {
            "key": self.key,
            "retries": self.retries,
            "rank": self.rank,
            "limit": self.limit,
            "late": self.late,
            "keep": self.keep,
            "max_lost": self.max_lost,
            "queue": self.queue,
        }
        return Message(self.serial.encode(), json.dumps(facts).encode())

    @classmethod
    def of(cls, granted: Granted) -> Letter:
        """The letter that was kept in the store."""
        facts = json.loads(granted.message.envelope)
        serial = granted.message.body.decode()
        return cls(
            granted.task_id,
            granted.attempt,
            serial=serial,
            deadlines=granted.deadlines,
            **facts,
        )


@dataclass
class Run:
    """A run as its worker knows it."""

    letter: Letter
    token: str
    worker: str
    leased_until: int
    phase: str = "running"  # "stopping" or "ended", then "over"

    @property
    def id(self) -> str:
        """The task."""
        return self.letter.id

    @property
    def is_valid(self) -> bool:
        """Nobody has ended it from outside, and it has not settled."""
        return self.phase != "over"

    @property
    def named(self) -> dict[str, Any]:
        """The arguments that name it."""
        attempt = self.letter.attempt
        return {"token": self.token, "worker": self.worker, "attempt": attempt}


@dataclass
class Submit:
    """A submission that may be repeated, with the arguments it had."""

    letter: Letter
    arguments: dict[str, Any]
    answer: tuple[str, int]


def pairs_of(flat: list[bytes]) -> dict[str, str]:
    """The names and values of a flat reply."""
    texts = [value.decode() for value in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def numbers_of(flat: list[bytes]) -> dict[str, int]:
    """The names and whole numbers of a flat reply; what is infinite, is far away."""
    return {
        name: FAR if value == "inf" else int(float(value))
        for name, value in pairs_of(flat).items()
    }


#: The parts of a scope that are numbers by name.
NUMBERS = frozenset(
    {
        "leases",
        "outbox",
        "deadlines",
        "owed",
        "limits",
        "overrides",
        "blocked",
        "unwanted",
    }
)


#: The parts that are of a key, a task or a worker: where they go, and what reads
#: them.
BY_NAME: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "slots": ("slots", numbers_of),
    "waiting": ("waiting", lambda content: list(numbers_of(content).items())),
    "task": ("tasks", pairs_of),
    "worker": ("workers", pairs_of),
    "tombstone": ("tombstones", int),
    "strikes": ("strikes", numbers_of),
    "block-log": ("logs", lambda content: [entry.decode() for entry in content]),
    "offers": ("offers", lambda content: list(numbers_of(content).items())),
    "ignored": ("ignored", lambda content: {worker.decode() for worker in content}),
    "takers": ("takers", numbers_of),
}


@dataclass
class Scope:
    """All of a scope, as read in one moment."""

    now: int
    slots: dict[str, dict[str, int]] = field(default_factory=dict)
    waiting: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    tasks: dict[str, dict[str, str]] = field(default_factory=dict)
    workers: dict[str, dict[str, str]] = field(default_factory=dict)
    tombstones: dict[str, int] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)
    outbox: dict[str, int] = field(default_factory=dict)
    deadlines: dict[str, int] = field(default_factory=dict)
    owed: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    overrides: dict[str, int] = field(default_factory=dict)
    blocked: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, str] = field(default_factory=dict)
    strikes: dict[str, dict[str, int]] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)
    offers: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    ignored: dict[str, set[str]] = field(default_factory=dict)
    takers: dict[str, dict[str, int]] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    unwanted: dict[str, int] = field(default_factory=dict)
    waiting_bytes: int = 0
    others: set[str] = field(default_factory=set)
    immortal: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, link: Link, tag: str) -> Scope:
        """Read the scope *tag* in one script."""
        now, found = link.run(DUMP, (tag,), ())
        scope = cls(int(now) * 1000)
        for name, ttl, content in found:
            scope._add(name.decode().removeprefix(tag + ":"), ttl, content)
        return scope

    def _add(self, name: str, ttl: int, content: Any) -> None:
        if ttl == -1:
            self.immortal.add(name)
        part, _, rest = name.partition(":")
        if part in NUMBERS:
            setattr(self, part, numbers_of(content))
        elif part in BY_NAME:
            field_name, read = BY_NAME[part]
            getattr(self, field_name)[rest] = read(content)
        elif part == "workers":
            self.nodes = numbers_of(content)
        elif part == "blocks":
            self.blocks = pairs_of(content)
        elif part == "waiting-bytes":
            self.waiting_bytes = int(content)
        else:
            self.others.add(name)

    def state(self, task_id: str) -> str | None:
        """The state of a task, if the store knows it."""
        return self.tasks.get(task_id, {}).get("state")

    def verdict(self, task_id: str) -> str | None:
        """How a task was ended, if nobody has concluded it yet."""
        return self.tasks.get(task_id, {}).get("verdict")

    def held(self, key: str) -> int:
        """Slots of *key* that are taken."""
        return len(self.slots.get(key, ()))

    def queue(self, key: str) -> list[str]:
        """Who waits for *key*, in order."""
        return [task_id for task_id, _ in self.waiting.get(key, ())]

    def on_offer(self) -> list[str]:
        """What any worker may claim, in order of the queues."""
        return [
            task_id for _, part in sorted(self.offers.items()) for task_id, _ in part
        ]

    def room(self, key: str) -> float:
        """Slots of *key* that are free, as the store has its limit."""
        return self.limit(key) - self.held(key)

    def is_blocked(self, key: str) -> bool:
        """Whether the key is blocked, and not only unswept."""
        return self.blocked.get(key, 0) > self.now

    def limit(self, key: str, declared: int | None = None) -> float:
        """Slots that *key* has, by what an operator says, or as declared."""
        if "*" in self.overrides or self.is_blocked(key):
            return 0
        known = self.limits.get(key, 0) if declared is None else declared
        limit = self.overrides.get(key, known)
        return float("inf") if limit < 0 else limit

    def same(self, other: Scope) -> bool:
        """Whether nothing was changed, lifetimes of worker lists aside."""
        return replace(self, now=0) == replace(other, now=0)


def earlier(message: Any, seconds: int) -> Any:
    """A message or a grant, with its deadlines moved closer."""
    moved = Deadlines(*(at and at - seconds * 1000 for at in message.deadlines))
    if isinstance(message, Granted):
        return message._replace(deadlines=moved)
    return replace(message, deadlines=moved)
