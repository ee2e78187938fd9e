"""compiler/lowering."""
