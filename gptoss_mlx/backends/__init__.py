"""The backends: one folder for each tensor library, and the modules that they share."""
