"""What fits in a budget, and whether the plan was right."""
