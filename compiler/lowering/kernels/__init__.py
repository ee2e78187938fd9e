"""One module a kind of kernel: how a group becomes loops over tiles."""
