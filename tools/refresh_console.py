"""Runs the commands shown in README.md and ARCHITECTURE.md and updates their output: `make readme`.

In every `console` block, a line `$ command` is run by the shell in the repository's root, with the environment's
commands on the PATH, and the lines after it are replaced by its standard output.

Invariant: only command output changes; if a command fails, the file is left unchanged.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "ARCHITECTURE.md")


def main() -> None:
    """Refresh the documents."""
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(refreshed_text(path.read_text(encoding="utf-8")), encoding="utf-8")


def refreshed_text(text: str) -> str:
    """A document with the current output of all its commands."""
    return re.sub(r"(?<=```console\n).*?(?=```)", lambda block: refreshed(block[0]), text, flags=re.S)


def refreshed(block: str) -> str:
    """A block with the current output of its commands."""
    commands = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
    return "\n".join(f"$ {command}\n{output(command)}" for command in commands)


def output(command: str) -> str:
    """The output of `command`, without trailing blanks. Raises CalledProcessError if it fails."""
    print(f"$ {command}", file=sys.stderr)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONIOENCODING": "utf-8"}
    shell = ["bash", "-c", command]
    done = subprocess.run(
        shell, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    lines = done.stdout.decode("utf-8").splitlines()
    text = "".join(line.rstrip() + "\n" for line in lines).strip("\n")
    return f"{text}\n" if text else ""


if __name__ == "__main__":
    main()
