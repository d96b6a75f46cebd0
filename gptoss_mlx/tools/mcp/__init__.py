"""MCP servers as tools: the file that names them, their processes, what they offer and give."""
