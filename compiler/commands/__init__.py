"""The commands of `ppuc`, one module each. They import nothing heavy until they run."""
