"""Which memory holds a value, when, and at which address."""
