"""What several callers at a time get from one engine."""
