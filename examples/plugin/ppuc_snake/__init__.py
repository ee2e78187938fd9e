"""What ppuc-snake adds to ppuc; pyproject.toml names each part as an entry point."""

from pathlib import Path

MACHINE = Path(__file__).parent / "ppu-vocoder.toml"
"""A machine: two units, for small vocoders."""
