"""The `python` tool: code that a model wrote is run in a sandbox, as in a notebook."""
