"""What the model and the person were promised: a notebook that lasts, limits, files, figures."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from gptoss_mlx.errors import OptionError, SandboxError
from gptoss_mlx.tools.python.limits import Limits
from gptoss_mlx.tools.python.tool import PythonTool
from gptoss_mlx.tools.tool import Outcome, Tool
from tests.tools.python.conftest import SMALL, Make

pytestmark = pytest.mark.timeout(60)


def said(tool: PythonTool, code: str) -> str:
    return tool.call("python", code).text


CELLS = {
    "1 + 1": "2",
    "x = 5": "[no output]",
    "": "[no output]",
    "# a comment": "[no output]",
    "'text'": "'text'",
    "None": "[no output]",
    "print('a')\n2": "a\n2",
    "3;": "[no output]",
    "3  # ;": "3",
    "'a;'": "'a;'",
    "import sys; print('out'); print('err', file=sys.stderr); 4": "out\nerr\n4",
    "import os; _ = os.system('echo shell')": "shell",
    "!echo shell": "shell",
    "%matplotlib inline\n6": "6",
    "for i in range(2):\n    !echo {i}": "{i}\n{i}",
    "import asyncio\nawait asyncio.sleep(0, 7)": "7",
    "display(8, 9)": "8\n9",
    "print('\\ud800')": "\\ud800",
    "import os; _ = os.write(1, b'\\xff\\n')": "\N{REPLACEMENT CHARACTER}",
    "print('half', end='\\rwhole\\n')": "whole",
    "print('\\x1b[31mred\\x1b[0m')": "red",
    "import os; os.getcwd()": "'/mnt/data'",
    "__name__": "'__main__'",
    "class A:\n    pass\nimport pickle; type(pickle.loads(pickle.dumps(A()))).__name__": "'A'",
    "from multiprocessing import Pool\nwith Pool(2) as p: print(p.map(abs, [-1, -2]))": "[1, 2]",
}


@pytest.mark.parametrize("code", CELLS)
def test_a_cell_says_what_a_notebook_would(code: str, walled: PythonTool) -> None:
    output = walled.call("python", code)
    expected = CELLS[code]
    assert (output.text, output.failed) == (expected, False)


def test_it_is_a_tool(walled: PythonTool) -> None:
    tool: Tool = walled
    assert tool.name == "python"
    assert tool.call("browser.open", "1") == Outcome(
        "there is no browser.open; code goes to python", failed=True
    )


def test_names_last_from_call_to_call(make: Make) -> None:
    tool = make()
    said(tool, "import math\ndef area(r):\n    return math.pi * r**2")
    assert said(tool, "round(area(2), 2)") == "12.57"
    assert said(tool, "_") == "12.57"


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.close(0); os.close(1); os.close(2)",
        "import sys; sys.stdout.close(); sys.stderr.close()",
        "import sys; sys.stdout = sys.stderr = None",
        "import os; os.dup2(os.open(os.devnull, os.O_RDWR), 1)",
        "import os; os.chdir('/')",
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "__builtins__ = __name__ = None",
    ],
)
def test_what_a_cell_breaks_is_whole_in_the_next(code: str, walled: PythonTool) -> None:
    walled.call("python", code)
    further = walled.call("python", "import os, signal; print(os.getcwd(), __name__)")
    assert further.text == "/mnt/data __main__"
    ignored = "signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL)"
    assert said(walled, ignored) == "False"


def test_a_child_ends_with_its_cell(walled: PythonTool) -> None:
    """It does not become a second interpreter. The parent waits for its end."""
    code = "import os\nif os.fork(): _ = os.wait()\n'both'"
    assert said(walled, code) == "'both'\n'both'"
    assert said(walled, "1") == "1"


def test_a_traceback_shows_the_code_and_nothing_of_ours(walled: PythonTool) -> None:
    walled.call("python", "def f():\n    raise ValueError('wrong')")
    output = walled.call("python", "f()")
    assert output.failed
    lines = output.text.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line for line in lines if "File" in line and "<cell" not in line] == []
    assert "    raise ValueError('wrong')" in lines
    assert lines[-1] == "ValueError: wrong"
    output = walled.call("python", "1 +")
    assert output.failed
    assert "SyntaxError: invalid syntax" in output.text
    assert "worker" not in output.text


def test_nobody_is_there_to_be_asked(walled: PythonTool) -> None:
    output = walled.call("python", "input()")
    assert output.failed
    assert "EOFError" in output.text


def test_long_output_is_cut_in_the_middle_and_says_so(make: Make) -> None:
    text = said(make(replace(SMALL, output=200)), "print('a' * 100 + 'b' * 500 + 'c' * 99)")
    assert text == f"{'a' * 100}\n[500 characters left out: the limit is 200]\n{'c' * 99}"


def test_a_call_that_takes_too_long_is_interrupted_and_keeps_its_names(make: Make) -> None:
    tool = make(replace(SMALL, wall=0.3))
    output = tool.call("python", "x = 1\nimport time; time.sleep(60)")
    assert output.failed
    assert output.text.endswith("[interrupted: the limit of 0.3 seconds was reached]")
    assert "KeyboardInterrupt" in output.text
    assert said(tool, "x") == "1"


def test_a_person_can_end_a_call_and_its_names_are_kept(make: Make) -> None:
    tool = make()
    said(tool, "x = 2")
    asked = itertools.count()
    output = tool.call("python", "import time; time.sleep(60)", lambda: next(asked) > 1)
    assert output.failed
    assert output.text.endswith("[interrupted by the user]")
    assert said(tool, "x") == "2"


def test_a_dead_interpreter_is_replaced_and_the_model_is_told(make: Make) -> None:
    tool = make()
    output = tool.call("python", "x = 1; open('kept', 'w').write('k')\nimport os; os._exit(3)")
    assert output.failed
    assert "[the interpreter has ended: it ended with exit code 3; its variables are lost]" in (
        output.text
    )
    assert [file.name for file in output.files] == ["kept"]
    assert said(tool, "open('kept').read()") == (
        "'k'\n[a new interpreter was started: what earlier calls defined is gone]"
    )
    assert said(tool, "1") == "1"


def test_files_come_back_when_they_are_new_or_changed(make: Make) -> None:
    tool = make()
    one = tool.call("python", "open('a.txt', 'w').write('1')\nopen('b.txt', 'w').write('1');")
    assert [file.name for file in one.files] == ["a.txt", "b.txt"]
    assert one.text == "[files written: /mnt/data/a.txt, /mnt/data/b.txt]"
    assert tool.call("python", "open('a.txt').read();").files == ()
    two = tool.call(
        "python",
        "import os; os.makedirs('d/e'); open('d/e/c', 'w').write('2')\n"
        "open('/mnt/data/b.txt', 'a').write('2');",
    )
    assert [str(file.relative_to(tool.folder)) for file in two.files] == ["b.txt", "d/e/c"]
    assert (tool.folder / "b.txt").read_text(encoding="utf-8") == "12"


def test_what_a_person_puts_into_the_folder_is_there_at_the_next_call(make: Make) -> None:
    tool = make()
    (tool.folder / "in").mkdir()
    (tool.folder / "in" / "data.csv").write_text("1,2", encoding="utf-8")
    (tool.folder / "link").symlink_to("/etc/passwd")
    output = tool.call(
        "python", "import os; print(open('/mnt/data/in/data.csv').read())\nos.path.lexists('link')"
    )
    assert output == Outcome("1,2\nFalse")
    (tool.folder / "in" / "data.csv").write_text("3,4,5", encoding="utf-8")
    assert said(tool, "print(open('in/data.csv').read())") == "3,4,5"


def test_files_stay_when_the_tool_is_closed(make: Make) -> None:
    tool = make()
    (file,) = tool.call("python", "open('a.txt', 'w').write('1');").files
    tool.close()
    tool.close()
    assert file.read_text(encoding="utf-8") == "1"


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is missing")
def test_figures_come_back_as_files(make: Make) -> None:
    tool = make()
    output = tool.call(
        "python",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()\nplt.plot([2, 1]);",
    )
    assert not output.failed, output.text
    assert [file.name for file in output.files] == ["figure-1.png", "figure-2.png"]
    assert {file.read_bytes()[:8] for file in output.files} == {b"\x89PNG\r\n\x1a\n"}
    assert "[figure saved as /mnt/data/figure-1.png]" in output.text
    assert [f.name for f in tool.call("python", "plt.plot([3]);").files] == ["figure-3.png"]
    assert tool.call("python", "plt.get_fignums()").text == "[]"


@pytest.mark.parametrize("name", ["numpy", "psutil"])
def test_installed_packages_can_be_imported(name: str, walled: PythonTool) -> None:
    assert said(walled, f"import {name}; {name}.__name__") == f"'{name}'"


def test_without_a_sandbox_it_is_the_same_notebook(tmp_path: Path) -> None:
    """With the folder itself in the place of /mnt/data, where nothing can be mounted."""
    tool = PythonTool(tmp_path / "folder", replace(SMALL, wall=20), sandbox="none")
    output = tool.call(
        "python", "open('/mnt/data/a.txt', 'w').write('1');\nopen(f'/mnt/data/{1}', 'w');"
    )
    assert output.files == (tmp_path / "folder" / "1", tmp_path / "folder" / "a.txt")
    assert said(tool, "bytearray(1 << 40)").endswith("MemoryError")
    tool.call("python", "y = 1")
    assert said(tool, "import os; print(y); os.path.samefile('.', '/mnt/data')") == "1\nTrue"
    tool.close()


def test_a_folder_that_grows_too_large_is_seen_without_a_sandbox(tmp_path: Path) -> None:
    limits = replace(SMALL, wall=20, folder=1 << 20, file=1 << 19, files=20)
    code = (
        "import itertools, time\nfor i in itertools.count():\n"
        "    open(f'/mnt/data/{i % N}', 'wb').write(bytes(SIZE)); time.sleep(0.01)"
    )
    for count, size, told in ((4, 1 << 19, "more than 1.0 MiB"), (99, 1, "more than 20 files")):
        tool = PythonTool(tmp_path / told, limits, sandbox="none")
        assert told in said(tool, code.replace("N", str(count)).replace("SIZE", str(size)))
        tool.close()


def test_a_folder_that_the_code_removes_is_made_again(tmp_path: Path) -> None:
    tool = PythonTool(tmp_path / "folder", replace(SMALL, wall=20), sandbox="none")
    assert not tool.call("python", "import os, shutil; shutil.rmtree(os.getcwd())").failed
    assert tool.call("python", "open('a', 'w');").files == (tmp_path / "folder" / "a",)
    tool.close()


def test_mistakes_in_the_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="sandbox is 'off', but must be 'required' or 'none'"):
        PythonTool(tmp_path, sandbox="off")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="limit memory is 5, but must be at least 67108864"):
        Limits(memory=5)
    (tmp_path / "file").touch()
    with pytest.raises(SandboxError, match="file: cannot be Python's folder: File exists"):
        PythonTool(tmp_path / "file", sandbox="none").call("python", "1")
