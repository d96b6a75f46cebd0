"""Memory planning: what a model takes in memory, computed before anything is loaded."""
