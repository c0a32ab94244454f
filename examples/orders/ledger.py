"""The ledger: what the service has really done, one line for each effect.

    ledger = Ledger(path)                  read what is there, go on behind it
    ledger.find(key) -> Effect | None      what was done under this key
    ledger.write(key, item, pieces)        do it: the effect and its entry are one write

    follower = Follower(path)              somebody else who reads along
    follower.look().counts                 effects by key, up to now

The line *is* the effect: there is no moment at which one is there without the other. It is in the
kernel's hands before the sender hears of it, so it survives a `kill -9` of the service (for a power
cut it would need an fsync too; nobody pulls the plug here).

The file does not refuse a second line under one key. That is on purpose: a service that did
something twice shall not be able to hide it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Effect:
    """One order that was taken. Everything the answer says is in here, so it can be said again."""

    number: int
    key: str
    item: str
    pieces: int

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


class Ledger:
    """The service's own hand on the file. One process writes it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._effects: dict[str, Effect] = {}
        lines = path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            # Killed in the middle of a write. Nobody was answered, so it was not done.
            os.ftruncate(self._file, sum(len(line) for line in lines[:-1]))
            lines.pop()
        for line in lines:
            effect = Effect(**json.loads(line))
            self._effects.setdefault(effect.key, effect)
        self._count = len(lines)

    def find(self, key: str) -> Effect | None:
        return self._effects.get(key)

    def write(self, key: str, item: str, pieces: int) -> Effect:
        """The effect. When this returns, it was done; when it raises, it was not."""
        effect = Effect(number=self._count + 1, key=key, item=item, pieces=pieces)
        line = effect.line()
        before = os.fstat(self._file).st_size
        if os.write(self._file, line) != len(line):  # a full disk takes half a line
            os.ftruncate(self._file, before)
            raise OSError("the ledger cannot be written")
        self._count += 1
        self._effects[key] = effect
        return effect


class Follower:
    """Reads a ledger while somebody else writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self.counts: Counter[str] = Counter()

    def look(self) -> Follower:
        """Take in what is new. A line without its end is left for the next time."""
        if not self._path.exists():
            return self
        with self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        self.counts.update(json.loads(line)["key"] for line in whole.splitlines())
        return self
