"""The `browser` tool: search, open and find, as gpt-oss was trained to use them."""
