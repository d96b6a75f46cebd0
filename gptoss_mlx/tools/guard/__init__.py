"""The guard: what comes in and goes out is judged under a written policy."""
