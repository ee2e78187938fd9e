"""compiler/pipeline."""
