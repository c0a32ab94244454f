"""Which packages are asked, and how they are set up: as their READMEs say, and as well as they can.

    SUBJECTS        one row each: a package, a configuration, its adapter
    environment(s)  the virtual environment of its package, made where there is none
    running(s, …)   its server, for as long as the `with`

Nothing of this is a dependency: each package lives in an environment of its own in the user's cache
folder, beside what `./run bench` keeps there. Each adapter puts the package in front of (or around)
the counter service that `unspool check-idempotency` asks, and behind its authentication, which is
where READMEs put it, and where a scope hook can know the caller.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..process import Failed, Process, free_port

HERE: Final = Path(__file__).parent
SOURCES: Final = HERE.parent.parent / "src"
INSTALL_S: Final = 300


@dataclass(frozen=True, slots=True)
class Subject:
    package: str
    """Its name on PyPI; empty: ours."""
    adapter: str
    how: str
    """`as it comes`, or the best that its settings allow."""
    best: bool = False
    more: tuple[str, ...] = ()
    """What else its README asks for."""
    scope: bool = False
    """It asks a function of ours who is asking, so D4 can be asked."""
    body_max_bytes: int = 0
    """The largest request body that it takes under a key; 0: it has no limit."""

    @property
    def name(self) -> str:
        return self.package or "unspool"


DJANGO: Final = ("waitress",)
MIB: Final = 1024 * 1024
SUBJECTS: Final = (
    Subject("", "ours", "ASGI middleware", best=True, scope=True, body_max_bytes=MIB),
    Subject("asgi-idempotency-header", "header", "memory backend", more=("fastapi", "redis")),
    Subject("fastapi-idempotency", "ohshya", "as it comes", body_max_bytes=8 * MIB),
    Subject(
        "fastapi-idempotency", "ohshya", "scope by caller, no automatic window",
        best=True, scope=True, body_max_bytes=8 * MIB,
    ),
    Subject("idemptx", "decorated", "as it comes, memory backend"),
    Subject(
        "idemptx", "decorated", "waits, keys optional, its exceptions made answers", best=True
    ),
    Subject("django-idempotency-key", "yoyo", "as it comes", more=DJANGO),
    Subject(
        "django-idempotency-key", "yoyo", "encoder by caller, original status, a lock of 5 s",
        best=True, more=DJANGO,
    ),
    Subject("drf-idempotency", "drf", "database backend", more=DJANGO),
)  # fmt: skip

NOT_ASKED: Final = {
    "idempotency-kit": "is for functions: it has no HTTP end to be asked at",
}


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base, "unspool-benchmarks", "compare")


def environment(subject: Subject) -> Path:
    """Its Python. Raises Failed where it cannot be had."""
    if not subject.package:
        return Path(sys.executable)
    home = cache() / subject.package
    python = home / "bin" / "python"
    wanted = [subject.package, *subject.more, "httptools", "msgspec", "uvicorn", "uvloop"]
    mark = home / "installed"
    if mark.exists() and mark.read_text().split() == wanted:
        return python
    home.parent.mkdir(parents=True, exist_ok=True)
    venv.create(home, with_pip=True, symlinks=True, clear=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted],
        capture_output=True, text=True, timeout=INSTALL_S, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise Failed(f"{subject.package} is not installed: {done.stderr.strip()[-300:]}")
    mark.write_text(" ".join(wanted))
    return python


def versions(subject: Subject) -> str:
    """`idemptx 0.2.2 (starlette 1.10.0)`: the package, and what it stands on."""
    if not subject.package:
        from unspool import __version__

        return f"unspool {__version__}"
    look = (
        "import json, importlib.metadata as m; print(json.dumps("
        "{d.metadata['Name'].lower(): d.version for d in m.distributions()}))"
    )
    said = subprocess.run(
        [environment(subject), "-c", look], capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(said)
    names = ("fastapi", "starlette", "django", "djangorestframework")
    below = ", ".join(f"{name} {found[name]}" for name in names if name in found)
    return f"{subject.package} {found[subject.package]} ({below})"


@contextmanager
def running(
    subject: Subject, folder: Path, *, cores: set[int], quiet: bool = False
) -> Iterator[Process]:
    """Its server, listening; `process.port` is where. `quiet`: answers without counting."""
    port = free_port()
    program = HERE / "adapters" / f"{subject.adapter}.py"
    with Process(
        [str(environment(subject)), str(program)],
        cores=cores,
        log=folder / "output.log",
        folder=folder,
        environment={
            "PYTHONPATH": str(SOURCES),
            "PORT": str(port),
            "BEST": "1" if subject.best else "",
            "QUIET": "1" if quiet else "",
            "COUNTER_FILE": str(folder / "counts.db"),
        },
    ) as process:
        process.wait_listening(port, 30)
        process.port = port
        yield process
