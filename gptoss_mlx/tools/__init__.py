"""What the tools do that a model calls: `python`, `browser`, and others behind one protocol."""
