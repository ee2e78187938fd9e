"""ppuc disasm and ppuc asm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ppuc.compiler.commands.common import emit, json_option
from ppuc.compiler.commands.outputs import OutputFile, keep_input
from ppuc.ir.errors import counted

if TYPE_CHECKING:
    from ppuc.ir.program import Program
    from ppuc.targets.artifact import Artifact


@click.command(
    "disasm",
    short_help="The instructions of a .ppu program as text.",
    epilog="Example:\n\n  ppuc disasm net.ppu -o net.s",
)
@click.argument("program", type=click.Path(path_type=Path), metavar="FILE.ppu")
@click.option("-o", "--output", type=OutputFile(), metavar="FILE.s", help="Default: stdout.")
@json_option
def disasm_command(program: Path, output: Path | None, as_json: bool) -> None:
    """Print the instruction streams, rings, counters and vector programs of FILE.ppu as assembly text."""
    from ppuc.ir.files import write_file
    from ppuc.targets.artifact import load
    from ppuc.targets.assembler import disassemble

    keep_input(program, output)
    artifact = load(program)
    text = disassemble(artifact.program, artifact.vectors)
    if output is not None:
        write_file(output, text.encode())
    if as_json:
        record = {"program": str(program), "output": str(output) if output else None, "text": None if output else text}
        emit("disasm", record, True, lambda out, shown: None)
    elif output is None:
        click.echo(text, nl=False)


@click.command(
    "asm",
    short_help="Assemble text into a .ppu program.",
    epilog="Example:\n\n  ppuc asm net.s --like net.ppu -o edited.ppu",
)
@click.argument("text", type=click.Path(path_type=Path), metavar="FILE.s")
@click.option(
    "--like",
    type=click.Path(path_type=Path),
    metavar="FILE.ppu",
    required=True,
    help="The program that the text came from: gives the weights and the names of inputs and outputs.",
)
@click.option("-o", "--output", type=OutputFile(), metavar="FILE.ppu", required=True)
@json_option
def asm_command(text: Path, like: Path, output: Path, as_json: bool) -> None:
    """Assemble FILE.s, as `ppuc disasm` prints it, into a program with the weights of another one."""
    from ppuc.ir.errors import Diagnostic, TextError
    from ppuc.ir.files import read_text
    from ppuc.ir.verify import VerificationError, verify_program
    from ppuc.targets.artifact import load, save
    from ppuc.targets.assembler import assemble

    keep_input(text, output)
    source = read_text(text, TextError)
    program, vectors = assemble(source, str(text))
    try:
        verify_program(program, vectors)
    except VerificationError as error:
        raise TextError([Diagnostic(str(text), str(finding)) for finding in error.findings]) from None
    base = load(like)
    _require_alike(program, base, str(text), like)
    tensors = {t.name for t in program.tensors if t.role == "const"}
    constants = {name: base.constants[name] for name in base.constants if name in tensors}
    save(replace(base, program=program, vectors=vectors, constants=constants), output)
    record = {"text": str(text), "output": str(output), "kernels": sum(len(s.kernels) for s in program.segments)}
    emit(
        "asm",
        record,
        as_json,
        lambda out, shown: out.print(f"{shown['output']}: {counted(shown['kernels'], 'kernel')}"),
    )


def _require_alike(program: Program, base: Artifact, where: str, like: Path) -> None:
    """Raise TextError unless `base` gives the program its constants, and both have the same inputs and outputs."""
    from ppuc.ir.errors import TextError

    tensors = {t.name: t for t in program.tensors}
    constants = {n: t for n, t in tensors.items() if t.role == "const"}
    if missing := sorted(set(constants) - set(base.constants)):
        raise TextError.of(where, f"uses constants that {like} does not have", got=", ".join(missing[:5]))
    before = {t.name: t for t in base.program.tensors}
    for kind in ("inputs", "outputs"):
        if getattr(program, kind) != getattr(base.program, kind):
            got, expected = (", ".join(f"{n} = %{t}" for n, t in getattr(p, kind)) for p in (program, base.program))
            raise TextError.of(
                where, f"has different {kind} than {like}", got=got or "none", expected=expected or "none"
            )
    for name in (*constants, *(t for _, t in (*program.inputs, *program.outputs))):
        new, old = tensors[name], before[name]
        if (new.dtype, new.elements) != (old.dtype, old.elements):
            got, expected = (f"{t.elements} elements of {t.dtype}" for t in (new, old))
            raise TextError.of(where, f"%{name} differs from that in {like}", got=got, expected=expected)
