"""Names of everything kept in Redis; no other Python module spells one.

Scope and key are quoted. All names of a scope begin with one hash tag, so that
they live in one slot of a cluster: ``{prefix:scope}:``. The scripts build the
same names, in ``lua/includes/names.lua``.

===================  ======  ===================================  ================
after the hash tag   type    content                              lifetime
===================  ======  ===================================  ================
``slots:<key>``      zset    task id -> since, ms; a run below 0  while held
``waiting:<key>``    zset    task id -> rank and place            while one waits
``task:<id>``        hash    the record of a task                 until it settles
``leases``           zset    task id -> runs out, ms              while held
``outbox``           zset    task id -> publish again, ms         until confirmed
``deadlines``        zset    task id -> ends unless it did, ms    until then
``owed``             zset    task id -> conclude from, ms         until concluded
``limits``           hash    key -> slots                         while in use
``overrides``        hash    key -> slots; ``*``: a pause         until reset
``blocked``          zset    key -> until, ms                     until then
``blocks``           hash    key -> since, until, JSON            until then
``block-log:<key>``  list    since, until, JSON                   tombstone_ttl
``strikes:<key>``    zset    nonce of a report -> at, ms          block_interval
``waiting-bytes``    string  bytes of all that waits              while one waits
``worker:<id>``      hash    task id -> token, attempt, key       tombstone_ttl
``tombstone:<id>``   string  the attempt that has ended           tombstone_ttl
``progress:<id>``    list    the last events of a task            progress_ttl
``offers:<queue>``   zset    task id -> rank and place            until claimed
``ignored:<id>``     set     worker that does not want an offer   tombstone_ttl
``unwanted``         zset    task id that some ignore -> look, ms  until claimed
``workers``          zset    node name -> counts as gone, ms      until the last
``takers:<queue>``   zset    worker -> counts as gone, ms         until the last
``broadcast:<id>``   hash    node name -> has joined              progress_ttl
``swept``            string  last sweep, ms                       tombstone_ttl
``sweeping``         string  worker that sweeps                   sweep_interval
===================  ======  ===================================  ================

Channels carry the number of the database, of which publishing knows nothing:
``{prefix:scope}@<db>:events:<id>`` has the events of one task,
``<prefix>@<db>:reply:<token>`` those of all tasks that one process has submitted, and
``{prefix:scope}@<db>:available`` what workers may start.
"""

from __future__ import annotations

from secrets import token_hex
from urllib.parse import quote as percent_quote
from urllib.parse import unquote


__all__ = ["quote", "reply_channel", "scope_tag", "unquote"]

#: Readable in a name, and without a meaning for Redis or its patterns.
PLAIN = "/:@+=,;!$&()|~"


def quote(text: str) -> str:
    """Return *text* in a form that is safe inside a name.

    Braces would split the hash tag of a cluster, control characters would
    break terminals and logs.
    """
    return percent_quote(text, safe=PLAIN)


def scope_tag(prefix: str, scope: str) -> str:
    """Return the hash tag that all names of *scope* begin with."""
    # The last colon ends the prefix: no two pairs of names make one tag.
    return "{" + quote(prefix) + ":" + quote(scope).replace(":", "%3A") + "}"


def reply_channel(prefix: str, db: int) -> str:
    """Return the name of a new channel for what one process has submitted."""
    return f"{quote(prefix)}@{db}:reply:{token_hex(8)}"
