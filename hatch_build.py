"""The build hook: compiles what may be compiled, and goes on without it where it cannot.

`src/unspool/core/_heads.pyx` becomes a module in C. That wants a C compiler and Python's headers
(Debian: gcc, python3-dev). Without them unspool works as well and forwards more slowly; see
src/unspool/core/heads.py. UNSPOOL_COMPILE=no leaves it out, =yes makes a failure an error.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/unspool/core/_heads.pyx")


class CustomBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wish = os.environ.get("UNSPOOL_COMPILE", "")
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        self._temp = tempfile.TemporaryDirectory()
        try:
            if version == "editable":
                for old in (root / SOURCE.parent).glob(f"{SOURCE.stem}.*.so"):
                    old.unlink()  # it would be imported, whatever its source was
            if wish == "no":
                return
            made = compiled(root, self._temp.name)
            if version == "editable":
                put_beside(made, root)
            else:  # the source, and what an editable installation has there, stay as they are
                name = Path(*SOURCE.parent.parts[1:], made.name)
                build_data["force_include"][str(made)] = str(name)
        except (Exception, SystemExit) as error:
            if wish == "yes":
                raise
            print(f"unspool: not compiled, and works without it: {error}", file=sys.stderr)
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.target_name == "wheel":
            self._temp.cleanup()


def compiled(root: Path, temp: str) -> Path:
    """The module, somewhere in the folder `temp`."""
    from Cython.Build import cythonize  # an import that fails is a build that goes on without
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    name = ".".join((*SOURCE.parent.parts[1:], SOURCE.stem))
    extensions = cythonize(
        [Extension(name, [str(root / SOURCE)], extra_compile_args=["-g0"])],
        build_dir=temp,
        quiet=True,
    )
    command = build_ext(Distribution({"name": "unspool", "ext_modules": extensions}))
    command.build_lib = command.build_temp = temp
    command.ensure_finalized()
    command.run()
    [made] = Path(temp).rglob(f"{SOURCE.stem}.*.so")
    return made


def put_beside(made: Path, root: Path) -> None:
    """Where an editable installation finds it. In one step: somebody may be importing it."""
    to = root / SOURCE.parent / made.name
    new = to.with_suffix(f".{os.getpid()}")
    new.write_bytes(made.read_bytes())
    new.chmod(0o755)
    new.replace(to)
