"""ppuc disasm and ppuc asm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from ppuc.compiler.commands.common import emit, json_option
from ppuc.compiler.commands.outputs import OutputFile, keep_input


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
    from ppuc.compiler.pipeline.dump import write_file
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
    from ppuc.ir.errors import TextError
    from ppuc.targets.artifact import load, save
    from ppuc.targets.assembler import assemble

    keep_input(text, output)
    if not text.is_file():
        raise TextError.of(str(text), "no such file" if not text.exists() else "is not a file")
    try:
        source = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TextError.of(str(text), "is not text", got=error) from error
    program, vectors = assemble(source, str(text))
    base = load(like)
    tensors = {t.name for t in program.tensors if t.role == "const"}
    missing = sorted(tensors - set(base.constants))
    if missing:
        raise TextError.of(str(text), f"uses constants that {like} does not have", got=", ".join(missing[:5]))
    constants = {name: base.constants[name] for name in base.constants if name in tensors}
    save(replace(base, program=program, vectors=vectors, constants=constants), output)
    record = {"text": str(text), "output": str(output), "kernels": sum(len(s.kernels) for s in program.segments)}
    emit("asm", record, as_json, lambda out, shown: out.print(f"{shown['output']}: {shown['kernels']} kernels"))
