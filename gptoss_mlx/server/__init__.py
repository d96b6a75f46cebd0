"""The local server: every API is a translation of the same deltas. Nothing here knows tensors."""
