"""Metal to what clang takes as C++ for OpenCL. Each rewrite keeps the lines where they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from .errors import MetalError
from .text import Text

KERNEL = re.compile(r"\[\[\s*kernel\s*\]\]|\bkernel\b")
HOST_NAME = re.compile(r"\[\[\s*host_name\([^)]*\)\s*\]\]")
INSTANTIATION = re.compile(r"\btemplate\s+decltype\s*\([^;]*;")
FUNCTION_CONSTANT = re.compile(r"\s*\[\[\s*function_constant\(\s*(\d+)\s*\)\s*\]\]")
BFLOAT_LITERAL = re.compile(r"\b((?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?)bf\b")
VECTOR_CALL = re.compile(r"\b(?:metal\s*::\s*)?vec\s*<([^<>;]+)>\s*\((?=[^)&*])")
VECTOR = r"(?:bool|u?char|u?short|u?int|u?long|half|float|bfloat)[234]"
VECTOR_ALIAS = re.compile(
    rf"\busing\s+(\w+)\s*=\s*(?:metal::)?(?:vec\s*<[^;]*>|{VECTOR})\s*;"
    rf"|\btypedef\s+(?:metal::)?(?:vec\s*<[^;]*>|{VECTOR})\s+(\w+)\s*;"
)
VECTOR_REFERENCE = re.compile(rf"\b({VECTOR})\s*(?=\(\s*[&*]\s*\w*\s*\))")
PARENTHESES = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
SHARED = re.compile(
    r"(?<=[;{}])(?P<before>\s*)(?:alignas\(\d+\)\s*)?threadgroup\s+"
    r"(?P<type>(?:typename\s+)?(?:\w+::)*\w+(?:\s*<[^;()]*?>)?)\s+"
    r"(?P<names>\w+\s*(?:\[[^\];]*\]\s*)*(?:,\s*\w+\s*(?:\[[^\];]*\]\s*)*)*);"
)


def rewrite(text: Text, constants: Mapping[int, int] | None = None) -> Text:
    """The text as the compiler gets it, with the values of [[function_constant(i)]].

    Raises MetalError for a threadgroup variable outside a kernel.
    """
    body = function_constants(without_comments(text.body), constants or {})
    body = threadgroup_variables(Text(body, text.file))
    for step in (
        without_instantiations,
        without_kernel_keyword,
        bfloat_literals,
        vector_calls,
        vector_references,
        without_constructor_spaces,
        without_metal_pragmas,
    ):
        body = step(body)
    return Text(body, text.file)


def without_comments(body: str) -> str:
    """Blanks for comments, so that no rewrite finds its pattern in one."""
    return re.sub(
        r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), body, flags=re.DOTALL
    )


def function_constants(body: str, values: Mapping[int, int]) -> str:
    """They are ordinary constants here; one not given is 0."""
    return FUNCTION_CONSTANT.sub(lambda m: f" = {values.get(int(m[1]), 0)}", body)


def without_instantiations(body: str) -> str:
    """The launcher instantiates what it calls; clang takes no attributes there."""
    body = HOST_NAME.sub("", body)
    body = re.sub(r"(\btemplate\s*)(?:\[\[\s*kernel\s*\]\]|\bkernel\b)", r"\1", body)
    return INSTANTIATION.sub(lambda m: "\n" * m[0].count("\n"), body)


def without_kernel_keyword(body: str) -> str:
    """OpenCL's kernels cannot be templates: ours are plain functions."""
    return KERNEL.sub("", body)


def bfloat_literals(body: str) -> str:
    """clang has no suffix bf."""
    return BFLOAT_LITERAL.sub(r"((bfloat)\1f)", body)


def vector_calls(body: str) -> str:
    """vec<T, 4>(...), and calls of its aliases: clang's vectors have no constructors."""
    body = VECTOR_CALL.sub(r"mtl_make<metal::vec<\1>>(", body)
    for alias in dict.fromkeys(a or b for a, b in VECTOR_ALIAS.findall(body)):
        body = re.sub(rf"(?<![\w<]){alias}\s*\((?=[^)&*])", f"mtl_make<{alias}>(", body)
    return body


def vector_references(body: str) -> str:
    """`uint2 (&x)[8]` is no call, though the vectors' names are macros with arguments."""
    return VECTOR_REFERENCE.sub(r"\1 mtl_no_call ", body)


def without_constructor_spaces(body: str) -> str:
    """`S(int x) thread : ...`: clang takes an address space on methods only."""
    names = set(re.findall(r"\bstruct\s+(\w+)|\bclass\s+(\w+)", body))
    known = {name for pair in names for name in pair if name}
    pattern = re.compile(rf"(\b(\w+)\s*{PARENTHESES})(\s*)thread(?=\s*[{{:;=])")
    return pattern.sub(lambda m: m[1] + m[3] + ("" if m[2] in known else "thread"), body)


def without_metal_pragmas(body: str) -> str:
    """They are Metal's own."""
    return re.sub(r"#pragma METAL[^\n]*", "", body)


def kernel_bodies(body: str) -> list[tuple[int, int]]:
    """From where to where the bodies of kernels reach."""
    spans = []
    for match in KERNEL.finditer(body):
        start, end = body.find("{", match.end()), body.find(";", match.end())
        parameters = body.find("(", match.end())
        if start < 0 or (0 <= end < start) or not 0 <= parameters < start:
            continue
        spans.append((start, matching(body, start)))
    return spans


def matching(body: str, at: int) -> int:
    """Where the bracket opened at `at` closes."""
    opening = body[at]
    closing = {"(": ")", "{": "}", "[": "]"}[opening]
    depth = 0
    for i in range(at, len(body)):
        depth += (body[i] == opening) - (body[i] == closing)
        if depth == 0:
            return i
    return len(body)


def threadgroup_variables(text: Text) -> str:
    """clang forbids them in templates: the runtime hands out their memory instead."""
    bodies = kernel_bodies(text.body)
    numbers = iter(range(1, 1 << 20))

    def allocate(match: re.Match[str]) -> str:
        at = match.start("type")
        if not any(start < at < end for start, end in bodies):
            raise MetalError(
                f"{text.place(at)}: error: a threadgroup variable outside a kernel function"
            )
        rows = [declaration(match["type"], name, next(numbers)) for name in split(match["names"])]
        return match["before"] + " ".join(rows)

    return SHARED.sub(allocate, text.body)


def declaration(kind: str, name: str, number: int) -> str:
    """`float tile[8][4]` -> a reference to memory of the threadgroup."""
    found = re.match(r"\s*(\w+)\s*(.*)$", name, re.DOTALL)
    assert found
    name, dims = found[1], " ".join(found[2].split())
    full = f"{kind}{dims}"
    return (
        f"mtl_shared_reference<{full}> {name} = *(mtl_shared_pointer<{full}>)"
        f'mtl_threadgroup_memory("{name}", {number}, sizeof({full}), alignof({kind}));'
    )


def split(names: str) -> Iterator[str]:
    """At commas that are not within brackets."""
    depth, current = 0, ""
    for character in names:
        depth += (character in "([<{") - (character in ")]>}")
        if character == "," and depth == 0:
            yield current
            current = ""
        else:
            current += character
    if current.strip():
        yield current
