"""One module per kernel kind: how a group becomes loops over tiles."""
