"""A server of the package `mcp` over stdio, which lists one tool more after a call."""

from __future__ import annotations

from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image

server = MCPServer("fast")


@server.tool()
def weather(city: str, days: int | None = None) -> dict[str, str | int]:
    """The weather of a city."""
    return {"city": city, "days": days or 1, "sky": "clear"}


@server.tool()
def fail() -> str:
    raise ValueError("it was asked to")


@server.tool()
def picture() -> Image:
    return Image(data=b"\x89PNG\r\n\x1a\n", format="png")


@server.tool()
async def learn(context: Context) -> str:
    server.add_tool(lambda: "learned", name="new", description="It is new.")
    await context.session.send_tool_list_changed()
    return "done"


server.run()
