"""Tests; each module here mirrors one of the package."""
