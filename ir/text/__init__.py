"""The text form of every level, used by dumps, and its parser.

`parse_module(print_module(m), resources)` equals `m`. One statement per line; `//` starts a comment; a line that ends
in a comma or an opening parenthesis continues on the next one. Constants of more than 16 elements are named by key
(`res("sha256:...", "name")`) and stored beside the text: `external_resources` lists them when writing, `resources`
finds them when reading.
"""

from ppuc.ir.text.literals import external_resources
from ppuc.ir.text.parse import parse_graph, parse_kernel, parse_module, parse_program, parse_vector
from ppuc.ir.text.print import print_graph, print_module, print_op
from ppuc.ir.text.print_kernel import print_kernel, print_statement, print_vector
from ppuc.ir.text.print_program import print_instr, print_program

__all__ = [
    "external_resources",
    "parse_graph",
    "parse_kernel",
    "parse_module",
    "parse_program",
    "parse_vector",
    "print_graph",
    "print_instr",
    "print_kernel",
    "print_module",
    "print_op",
    "print_program",
    "print_statement",
    "print_vector",
]
