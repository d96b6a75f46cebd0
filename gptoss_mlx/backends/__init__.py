"""Where a model computes: one folder a library, and above them what they share."""
