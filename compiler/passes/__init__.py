"""The passes, by subject, and what they share: contracts, remarks, rewriting."""
