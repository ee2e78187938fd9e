"""Headless Chromium: what a page is once its scripts have run."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--window-size=1280,1000",
)


@dataclass(frozen=True, slots=True)
class Shown:
    """The document as HTML, and the messages on the console."""

    dom: str
    console: tuple[str, ...]


def shown(file: Path, fragment: str, profile: Path) -> Shown:
    """Open `file` at `fragment`, and wait for what its scripts do in 8 s of virtual time. `profile` is a folder for the
    browser's own files. Needs CHROMIUM."""
    assert CHROMIUM is not None
    options = (*_QUIET, f"--user-data-dir={profile}", "--virtual-time-budget=8000", "--dump-dom")
    command = [CHROMIUM, *options, f"{file.as_uri()}#{fragment}"]
    run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    console = tuple(line for line in run.stderr.splitlines() if ":CONSOLE" in line)
    return Shown(run.stdout, console)
