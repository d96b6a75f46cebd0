"""Damaged inputs of every kind, through the functions that the commands use.

`python -m tests.fuzz --count 2000` tries so many of each kind.
"""
