"""The finding that ops do not form a kernel."""

from __future__ import annotations


class NotFusable(Exception):  # noqa: N818 - a finding that fusion acts on, not an error
    """The ops do not form one kernel of the requested kind; the message gives the reason (shown by `ppuc inspect`)."""
