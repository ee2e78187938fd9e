"""Calling the command `ppuc` as a user does."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from ppuc.compiler.cli import cli

TINY = ("--target", "ppu-tiny")


def ppuc(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def json_of(*arguments: object) -> dict[str, Any]:
    result = ppuc(*arguments, "--json")
    assert result.exit_code in (0, 1), result.stderr
    record: dict[str, Any] = json.loads(result.stdout)
    assert record["schema"] == 1
    assert record["command"] == arguments[0]
    return record


# Mistakes. Each is a message on stderr, exit code 2, nothing on stdout.


def error_of(*arguments: object) -> str:
    result = ppuc(*arguments)
    assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr
