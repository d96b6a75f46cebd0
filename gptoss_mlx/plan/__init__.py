"""What a model takes in memory: pure arithmetic, before anything is loaded."""
