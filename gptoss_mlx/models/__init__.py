"""A name or a folder -> a checkpoint, every tensor of it validated."""
