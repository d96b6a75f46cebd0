"""A kernel's parameters, and the C function that calls it with a thread's position."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import MetalError
from .rewrite import matching, split

VECTORS = {
    "thread_position_in_grid": "in_grid",
    "thread_position_in_threadgroup": "in_threadgroup",
    "threadgroup_position_in_grid": "threadgroup_at",
    "threads_per_grid": "grid_size",
    "grid_size": "grid_size",
    "threadgroups_per_grid": "threadgroups",
    "threads_per_threadgroup": "size",
    "dispatch_threads_per_threadgroup": "dispatched_size",
}
SCALARS = {
    "thread_index_in_threadgroup": "p->index",
    "thread_index_in_simdgroup": "p->lane",
    "simdgroup_index_in_threadgroup": "p->simdgroup",
    "simdgroups_per_threadgroup": "p->simdgroups",
    "dispatch_simdgroups_per_threadgroup": "p->dispatched_simdgroups",
    "thread_index_in_quadgroup": "p->lane % 4",
    "quadgroup_index_in_threadgroup": "p->index / 4",
    "threads_per_simdgroup": "32",
    "thread_execution_width": "32",
}
ATTRIBUTE = re.compile(r"\[\[\s*(\w+)\s*(?:\(\s*(\w+)\s*\))?\s*\]\]")


@dataclass(frozen=True)
class BufferParameter:
    """A buffer argument: its index, name, and whether the kernel may write it."""

    index: int
    name: str
    writable: bool


@dataclass(frozen=True)
class Signature:
    """A kernel's buffers and the launcher `metal_entry` that calls `call`."""

    buffers: tuple[BufferParameter, ...]
    launcher: str


def read_signature(body: str, call: str, shared: Mapping[int, int]) -> Signature:
    """The signature of the kernel named in `call` (`name` or `name<arguments>`).

    `shared` gives the bytes of `threadgroup` parameters by index.
    Raises MetalError if the kernel or a parameter's attribute is unknown.
    """
    name = call.partition("<")[0].strip()
    found = re.search(rf"\bvoid\s+{re.escape(name)}\s*\(", body)
    if not found:
        raise MetalError(f"{name}: no such kernel in the text")
    opening = found.end() - 1
    buffers: list[BufferParameter] = []
    arguments = []
    for parameter in split(body[opening + 1 : matching(body, opening)]):
        attribute = ATTRIBUTE.search(parameter)
        declared = re.match(r"\s*(.*[\s*&])(\w+)\s*$", ATTRIBUTE.sub("", parameter), re.DOTALL)
        if not declared:
            raise MetalError(f"{name}: parameter {parameter.strip()!r} is not understood")
        kind = " ".join(declared[1].split())
        if attribute and attribute[1] != "buffer":
            arguments.append(argument(name, kind, declared[2], attribute, shared))
            continue
        # Without an attribute Metal numbers buffers in their order.
        index = int(attribute[2]) if attribute else len(buffers)
        buffers.append(BufferParameter(index, declared[2], is_writable(kind)))
        wrapper = "mtl_reference" if kind.endswith("&") else "mtl_pointer"
        arguments.append(f"{wrapper}{{b[{index}]}}")
    return Signature(tuple(buffers), launcher(call, arguments))


def is_writable(kind: str) -> bool:
    """Whether what a pointer or reference of this type leads to may be written."""
    words = kind.replace("*", " ").replace("&", " ").split()
    return "const" not in words and "constant" not in words


def argument(
    kernel: str, kind: str, name: str, attribute: re.Match[str], shared: Mapping[int, int]
) -> str:
    """What the launcher passes for a parameter that is no buffer."""
    word = attribute[1]
    if word == "threadgroup":
        index = int(attribute[2])
        bytes_ = shared.get(index, 0)
        return f'mtl_pointer{{(ulong)mtl_threadgroup_memory("{name}", {-1 - index}, {bytes_}, 16)}}'
    if word in VECTORS:
        width = int(kind[-1]) if kind[-1].isdigit() else 1
        parts = [f"p->{VECTORS[word]}[{i}]" for i in range(width)]
        return f"({kind}){parts[0]}" if width == 1 else f"mtl_make<{kind}>({', '.join(parts)})"
    if word in SCALARS:
        return f"({kind})({SCALARS[word]})"
    raise MetalError(f"{kernel}: attribute [[{word}]] of {name} is not emulated")


def launcher(call: str, arguments: list[str]) -> str:
    """C code with one entry: metal_entry(addresses of the buffers, the thread's position)."""
    return f"""
#line 1 "launcher"
struct mtl_position {{
  uint in_grid[3], in_threadgroup[3], threadgroup_at[3], grid_size[3], threadgroups[3];
  uint size[3], dispatched_size[3];
  uint index, lane, simdgroup, simdgroups, dispatched_simdgroups;
}};
struct mtl_pointer {{
  ulong address;
  template <typename P> operator P() const {{ return (P)address; }}
}};
struct mtl_reference {{
  ulong address;
  template <typename P> operator constant P&() const {{ return *(constant P*)address; }}
  template <typename P> operator device P&() const {{ return *(device P*)address; }}
}};
extern "C" __attribute__((no_sanitize("thread")))
void metal_entry(const thread ulong* b, const thread mtl_position* p) {{
  {call}({", ".join(arguments)});
}}
"""
