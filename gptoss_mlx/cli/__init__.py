"""The commands: their arguments, what they show, and how they end."""
