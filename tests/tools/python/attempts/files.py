"""Attempts to read or write files outside. Files planted for us are in `test_planted.py`."""

from __future__ import annotations

from functools import partial

from tests.tools.python.attempts.attempt import Attempt

_file = partial(Attempt, "files outside")

FILES = (
    _file(
        "a file in the home folder",
        "a root file system of its own",
        "open(HOST['secret']).read()",
        expected="HELD FileNotFoundError",
    ),
    _file(
        "the list of the home folder",
        "root file system",
        "assert os.path.basename(HOST['secret']) in os.listdir(os.path.dirname(HOST['secret']))",
        expected="HELD FileNotFoundError",
    ),
    _file(
        "the same by .. from everywhere",
        "pivot_root: there is nothing above /",
        "open('/mnt/data/' + '../' * 40 + HOST['secret']).read()"
        " if os.path.isdir('/mnt/data') else open(HOST['secret'])",
        expected="HELD FileNotFoundError",
    ),
    _file(
        "/etc/shadow",
        "root file system: only the loader's and fonts' settings of /etc",
        "os.stat('/etc/shadow')",
        expected="HELD FileNotFoundError",
    ),
    _file(
        "the folder that the product was started in",
        "root file system",
        "open(os.path.join(HOST['cwd'], 'pyproject.toml')).read()",
        expected="HELD FileNotFoundError",
    ),
    _file(
        "the temporary files of others",
        "a /tmp of its own",
        "open(HOST['temporary']).read()",
        expected="HELD FileNotFoundError",
    ),
    _file(
        "the conversation's folder by its path outside",
        "root file system: it is copied, not mounted",
        "os.listdir(HOST['folder'])",
        expected="HELD FileNotFoundError",
    ),
    _file(
        "the environment's secrets",
        "its variables are ours alone",
        "assert 'PATH=' in open(f\"/proc/{HOST['pid']}/environ\").read()",
        expected="HELD FileNotFoundError",
    ),
    _file(
        "secrets in its own environment",
        "its variables are ours alone",
        "assert 'GPTOSS_TEST_KEY' in os.environ or 'KEY' in open('/proc/self/environ').read()",
        expected="HELD AssertionError",
        outside=False,
        twin="assert os.environ['HOME'] == '/tmp'; print('WORKS')",
    ),
    _file(
        "/proc/1/root, the way into another root",
        "the keeper cannot be traced",
        'os.listdir(f"/proc/{KEEPER}/root")',
        expected="HELD PermissionError",
    ),
    _file(
        "/proc/1/cwd",
        "the keeper cannot be traced",
        'os.listdir(f"/proc/{KEEPER}/cwd")',
        expected="HELD PermissionError",
    ),
    _file(
        "/proc/1/fd, descriptors of the keeper",
        "the keeper cannot be traced",
        'os.listdir(f"/proc/{KEEPER}/fd")',
        expected="HELD PermissionError",
    ),
    _file(
        "/proc/1/mem, memory of the keeper",
        "the keeper cannot be traced",
        "open(f\"/proc/{KEEPER}/mem\", 'rb').close()",
        expected="HELD PermissionError",
        privileged=True,
    ),
    _file(
        "a folder that somebody left open",
        "descriptors are closed",
        """
        for n in map(int, os.listdir('/proc/self/fd')):
            if n > 2 and os.path.isdir(f'/proc/self/fd/{n}'):
                os.fchdir(n)
                if os.getcwd() not in ('/mnt/data', '/proc/self/fd'):
                    print('REACHED', os.getcwd())
        raise OSError('none is open')
        """,
        expected="HELD OSError none is open",
        outside=False,
        fresh=True,
        twin="n = os.open('/mnt/data', os.O_RDONLY); assert os.path.isdir(f'/proc/self/fd/{n}')\n"
        "os.close(n); print('WORKS')",
    ),
    _file(
        "Python's library, to be written",
        "read-only mounts; Landlock",
        "open(os.__file__, 'ab').close()",
        expected="HELD (OSError|PermissionError)",
        privileged=True,
    ),
    _file(
        "a new file beside a program of the system",
        "read-only mounts; Landlock",
        "open('/usr/bin/gptoss-test', 'xb').close(); os.unlink('/usr/bin/gptoss-test')",
        expected="HELD (OSError|PermissionError)",
        privileged=True,
    ),
    _file(
        "a new file in the root folder",
        "read-only mounts; Landlock",
        "open('/gptoss-test', 'xb').close(); os.unlink('/gptoss-test')",
        expected="HELD (OSError|PermissionError)",
        privileged=True,
    ),
    _file(
        "a hard link to a file outside",
        "file systems of its own",
        "os.link(os.__file__, 'linked.py')",
        expected="HELD (OSError|PermissionError)",
        outside=False,
        twin="open('one', 'w').close(); os.link('one', 'other'); print('WORKS')",
    ),
    _file(
        "a disk as a new device",
        "no capability; nodev mounts; Landlock",
        "os.mknod('disk', 0o60600, os.makedev(254, 0)); os.unlink('disk')",
        expected="HELD PermissionError",
        privileged=True,
    ),
    _file(
        "the kernel's log",
        "a /dev of five devices",
        "os.stat('/dev/kmsg')",
        expected="HELD FileNotFoundError",
    ),
    _file(
        "the terminal",
        "a /dev of five devices; a session of its own",
        "os.stat('/dev/tty')",
        expected="HELD FileNotFoundError",
    ),
    _file(
        "/sys",
        "root file system",
        "os.listdir('/sys/kernel')",
        expected="HELD FileNotFoundError",
    ),
    _file(
        "/proc/sys/kernel/core_pattern, a program run as root",
        "a /proc of processes only; root's code runs as nobody",
        "open('/proc/sys/kernel/core_pattern', 'ab').close()",
        expected="HELD (FileNotFoundError|PermissionError|OSError)",
        privileged=True,
    ),
    _file(
        "the kernel's log, in /proc",
        "a /proc of processes only; no capability",
        "os.close(os.open('/proc/kmsg', os.O_RDONLY | os.O_NONBLOCK))",
        expected="HELD (FileNotFoundError|PermissionError)",
        privileged=True,
    ),
    _file(
        "a file by its handle, past all folders",
        "filter: open_by_handle_at",
        "system('open_by_handle_at', -100, ctypes.c_char_p(bytes(64)), 0)",
        expected="HELD PermissionError",
        privileged=True,
    ),
)
