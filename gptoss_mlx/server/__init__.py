"""HTTP: the local server, its APIs, and the chat page in `page/`."""
