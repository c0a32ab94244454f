"""The command at the end of an error, given to a shell as it stands.

done = pasted(caught.value, behind="Is it there: ")
done.returncode, done.stdout
"""

from __future__ import annotations

import subprocess


def pasted(error: BaseException, *, behind: str) -> subprocess.CompletedProcess[str]:
    said, found, command = str(error).partition(behind)
    assert found, said
    return subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=100, check=False
    )
