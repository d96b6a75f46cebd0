"""The engine: requests, continuous batching, event streams, and their results."""
