"""The version of ppuc, which artifacts record. A test keeps it equal to the package's."""

VERSION = "0.1.0"
