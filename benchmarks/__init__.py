"""Measurements, and the checkpoints they run on; not installed."""
