"""Sound requests, with everything in them that a person may send."""

from __future__ import annotations

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is the weather in Bonn?"}]},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "A tool knows.",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"place": "Bonn"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "clear"}'},
    {"role": "user", "content": "And tomorrow?", "name": "anna"},
]
SCHEMA = {
    "type": "object",
    "description": "Where and when",
    "properties": {
        "place": {"type": "string", "description": "A town", "default": "Bonn"},
        "days": {"type": "integer", "minimum": 0, "maximum": 9, "enum": [1, 2, 3]},
        "units": {"type": ["string", "null"], "enum": ["C", "F", None]},
        "more": {"type": "array", "items": {"anyOf": [{"type": "number"}, {"$ref": "#/$defs/a"}]}},
        "other": {"oneOf": [{"const": 3}, {"type": "object", "additionalProperties": False}]},
    },
    "required": ["place"],
    "$defs": {"a": {"type": "boolean", "nullable": True}},
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "The weather", "parameters": SCHEMA},
    },
    {"type": "function", "function": {"name": "now"}},
    {"type": "browser"},
]
ENFORCED = {**SCHEMA, "$defs": {"a": {"type": "boolean"}}}  # "nullable" is no JSON schema's keyword
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": ENFORCED}}
