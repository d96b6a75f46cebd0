"""Names of functions: valid whatever a server lists, never shared, the same each time."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.harmony.tools import TOOL_NAME
from gptoss_mlx.tools.mcp.names import MOST_LETTERS, function_name, prefixes

NAMES = st.text(min_size=1, max_size=100) | st.text("ab_. ", min_size=1, max_size=6)
PLAIN = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=30)


@given(st.lists(NAMES, min_size=1, max_size=4, unique=True), st.lists(NAMES, unique=True))
def test_every_tool_of_every_server_has_a_name_of_its_own(
    servers: list[str], tools: list[str]
) -> None:
    found = [function_name(prefix, tool) for prefix in prefixes(servers) for tool in tools]
    assert len(set(found)) == len(servers) * len(tools)
    assert all(TOOL_NAME.fullmatch(name) and len(name) <= MOST_LETTERS for name in found)


@given(PLAIN, PLAIN)
def test_plain_names_are_kept(server: str, tool: str) -> None:
    (prefix,) = prefixes([server])
    assert function_name(prefix, tool) == f"{server}_{tool}"


def test_altered_names_say_what_they_were() -> None:
    """And are these, in each version of the program: conversations have them."""
    assert prefixes(["My server", "a", "a_b"]) == ["My_server_", "a_", "a_b_648fa9_"]
    assert function_name("a_", "read/file") == "a_read_file_9cc468"
    assert function_name("a_", "x" * 200) == "a_" + "x" * 55 + "_" + "aa20c2"
