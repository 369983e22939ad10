"""Check the Lua scripts: for what hurts most in Redis, and by luacheck.

Lua 5.1 itself compiles each script as the loader sends it, with what it
includes, and the bytecode tells which globals it touches: a file that is not
included shows here, and Redis refuses to set any, only when that line runs.
luacheck (``apt install lua-check``) looks at each file; continuous integration
requires it.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from celery_bgtask.scripts.loader import assemble, load_sources


LUA = Path("celery_bgtask/lua")
LENT = {"redis", "cjson", "cmsgpack", "bit", "struct", "KEYS", "ARGV"}
STANDARD = {
    *("assert", "error", "ipairs", "math", "next", "pairs", "pcall", "select"),
    *("string", "table", "tonumber", "tostring", "type", "unpack"),
}
GET_GLOBAL, SET_GLOBAL = 5, 7


class Chunk:
    """Lua 5.1 bytecode, read from front to back."""

    def __init__(self, code: bytes) -> None:
        self.code = code
        self.at = 12  # the header

    def number(self, form: str) -> int:
        """Return the next number."""
        (value,) = struct.unpack_from(form, self.code, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def text(self) -> str:
        """Return the next string; its length counts a NUL at the end."""
        size = self.number("N")
        self.at += size
        return self.code[self.at - size : self.at - 1].decode(errors="replace")

    def constant(self) -> str:
        """Return the next constant if it is a string."""
        kind = self.number("B")
        if kind == 4:  # noqa: PLR2004
            return self.text()
        self.at += {0: 0, 1: 1, 3: 8}[kind]
        return ""

    def globals(self) -> Iterator[tuple[int, str, bool]]:
        """Yield line, name and whether it is set, of each use of a global."""
        self.text()
        self.at += 2 * 4 + 4  # lines, then counts of parameters and registers
        code = [self.number("I") for _ in range(self.number("i"))]
        constants = [self.constant() for _ in range(self.number("i"))]
        for _ in range(self.number("i")):
            yield from self.globals()
        lines = [self.number("i") for _ in range(self.number("i"))]
        for _ in range(self.number("i")):
            self.text()
            self.at += 2 * 4
        for _ in range(self.number("i")):
            self.text()

        for instruction, line in zip(code, lines, strict=True):
            operation = instruction & 0x3F
            if operation in {GET_GLOBAL, SET_GLOBAL}:
                yield line, constants[instruction >> 14], operation == SET_GLOBAL


def complaints() -> Iterator[str]:
    """Yield what is wrong with each script."""
    from lupa import lua51  # noqa: PLC0415

    compile_script = lua51.LuaRuntime(encoding=None).eval(
        b"function(source, name)"
        b"  local run, why = loadstring(source, name)"
        b"  return run and string.dump(run), why "
        b"end"
    )
    sources = load_sources()
    for name, script in assemble(sources).items():
        before = script.source.count("\n") - sources[name].count("\n")
        code, why = compile_script(script.source.encode(), b"=" + name.encode())
        if code is None:
            yield f"{why.decode()} (what it includes is {before} of these lines)"
            continue
        for line, variable, is_set in Chunk(code).globals():
            own = line > before
            where = f"{name}:{line - before}" if own else f"{name}, included:{line}"
            if is_set:
                yield f"{where}: sets the global {variable!r}"
            elif variable not in LENT | STANDARD:
                yield f"{where}: reads the global {variable!r}"


def main() -> int:
    """Return the exit status."""
    found = list(complaints())
    for complaint in found:
        print(complaint)
    luacheck = shutil.which("luacheck")
    if luacheck:
        status = subprocess.run([luacheck, "--quiet", str(LUA)], check=False).returncode
        return status or bool(found)
    print("no luacheck here (apt install lua-check): checked syntax and globals only")
    return bool(found) or bool(os.environ.get("CI"))


if __name__ == "__main__":
    sys.exit(main())
