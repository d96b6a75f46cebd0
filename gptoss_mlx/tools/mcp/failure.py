"""What goes wrong with a server."""

from __future__ import annotations


class ServerEndedError(Exception):
    """A server's connection has ended by itself; the text says how."""


class CallFailedError(Exception):
    """A call that gave no result; the text, for the model, names the server."""
