"""What serving requests costs, and whether what is served is what was asked for."""
