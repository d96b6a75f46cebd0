"""What requests of several callers cost, and whether they get what they asked for."""
