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
        root = Path(self.root)
        for old in (root / SOURCE.parent).glob(f"{SOURCE.stem}.*.so"):
            old.unlink()
        if self.target_name != "wheel" or wish == "no":
            return
        try:
            made = compiled(root)
        except (Exception, SystemExit) as error:
            if wish == "yes":
                raise
            print(f"unspool: not compiled, and works without it: {error}", file=sys.stderr)
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"].append(str(made.relative_to(root)))


def compiled(root: Path) -> Path:
    """The module, beside its source: an editable installation finds it there."""
    from Cython.Build import cythonize  # an import that fails is a build that goes on without
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    with tempfile.TemporaryDirectory() as temp:
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
        to = root / SOURCE.parent / made.name
        to.write_bytes(made.read_bytes())
        to.chmod(0o755)
        return to
