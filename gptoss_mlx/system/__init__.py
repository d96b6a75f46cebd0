"""This machine, and the machines known by name."""
