"""Attempts to use more than there is: memory, disk, CPU, output. Limits are small where used up."""

from __future__ import annotations

from functools import partial

from tests.tools.python.attempts.attempt import Attempt

_memory = partial(Attempt, "memory", outside=False, fresh=True)
_disk = partial(Attempt, "disk", outside=False, fresh=True)
_time = partial(Attempt, "time", outside=False, fresh=True, wall=0.5)
_output = partial(Attempt, "output", outside=False, fresh=True)

_FILL = """
with open({path!r}, 'wb', 0) as file:
    for _ in range(200):
        file.write(bytes(1 << 20))
"""
_SMALL = "f = open({path!r}, 'wb'); f.write(bytes(1000)); f.close(); print('WORKS')"

RESOURCES = (
    _memory(
        "one large allocation",
        "RLIMIT_DATA: a MemoryError, and the interpreter lives",
        "bytearray(1 << 40)",
        expected="HELD MemoryError",
        twin="bytearray(1 << 20); print('WORKS')",
    ),
    _memory(
        "many small allocations",
        "RLIMIT_DATA",
        "held = []\nwhile True:\n    held.append(bytes(1 << 16))",
        expected="HELD MemoryError",
        twin="held = [bytes(1 << 16) for _ in range(99)]; print('WORKS')",
    ),
    _memory(
        "memory of many processes",
        "the keeper counts all of them, and ends them",
        """
        for _ in range(6):
            if os.fork() == 0:
                try:
                    held = bytearray(os.urandom(1 << 16)) * (40 << 4)
                    time.sleep(60)
                finally:
                    os._exit(0)
        time.sleep(60)
        """,
        expected="used more memory than it may",
        twin="in_child(lambda: len(bytearray(1 << 20)) and 0); print('WORKS')",
        lost=True,
    ),
    _memory(
        "shared memory that no process's limit counts",
        "the keeper counts it",
        """
        held = mmap.mmap(-1, 300 << 20)
        for i in range(0, len(held), 4096):
            held[i] = 1
        time.sleep(60)
        """,
        expected="used more memory than it may",
        twin="m = mmap.mmap(-1, 1 << 20); m[0] = 1; print('WORKS')",
        lost=True,
    ),
    Attempt(
        "memory",
        "files in memory without a name",
        "filter: memfd_create",
        "os.close(os.memfd_create('x'))",
        "HELD PermissionError",
    ),
    Attempt(
        "memory",
        "System V shared memory",
        "filter: shmget",
        "system('shmget', 0, 0, 0)",
        "HELD PermissionError",
    ),
    Attempt(
        "memory",
        "message queues",
        "filter: msgget",
        "system('msgget', -1, 0)",
        "HELD PermissionError",
    ),
    Attempt(
        "memory",
        "room in a socket for megabytes of the kernel's",
        "filter: SO_SNDBUF",
        "a, b = socket.socketpair(); a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)",
        "HELD PermissionError",
    ),
    _memory(
        "the kernel's memory, by what waits in thousands of sockets",
        "the keeper counts each socket as full",
        """
        for _ in range(12):
            if os.fork() == 0:
                try:
                    held = [socket.socketpair() for _ in range(25)]
                    time.sleep(60)
                finally:
                    os._exit(0)
        time.sleep(60)
        """,
        expected="used more memory than it may",
        twin="held = [socket.socketpair() for _ in range(25)]; print('WORKS')",
        lost=True,
    ),
    Attempt(
        "memory",
        "the kernel's memory, by pages given to a pipe",
        "filter: vmsplice",
        "system('vmsplice', -1, 0, 0, 0)",
        "HELD PermissionError",
    ),
    Attempt(
        "memory",
        "the kernel's memory, by events that wait",
        "filter: inotify",
        "system('inotify_init1', -1)",
        "HELD PermissionError",
    ),
    Attempt(
        "memory",
        "the kernel's memory, by rules of Landlock",
        "filter: landlock_create_ruleset",
        "system('landlock_create_ruleset', -1, 8, 0)",
        "HELD PermissionError",
    ),
    _memory(
        "memory that is never swapped",
        "RLIMIT_MEMLOCK",
        """
        held = mmap.mmap(-1, 1 << 20)
        address = ctypes.addressof(ctypes.c_char.from_buffer(held))
        if _libc.mlock(ctypes.c_void_p(address), 1 << 20):
            raise OSError(ctypes.get_errno(), "mlock")
        """,
        expected="HELD (OSError|PermissionError)",
        twin="m = mmap.mmap(-1, 1 << 20); print('WORKS')",
    ),
    _memory(
        "a recursion without end",
        "Python's own limit",
        "def f(): f()\nf()",
        expected="HELD RecursionError",
        twin="def f(n): return n and f(n - 1)\nf(99); print('WORKS')",
    ),
    _memory(
        "a crash",
        "the next call has a new interpreter",
        "ctypes.string_at(0)",
        expected="killed by SIGSEGV",
        twin="ctypes.string_at(b'x'); print('WORKS')",
        lost=True,
    ),
    _memory(
        "all descriptors",
        "RLIMIT_NOFILE",
        "held = []\nwhile True:\n    held.append(open(os.devnull))",
        expected="HELD OSError.*Too many open files",
        twin="open(os.devnull).close(); print('WORKS')",
    ),
    _disk(
        "a folder that is filled",
        "a file system in memory of that size",
        "for i in range(9):\n    open(f'/mnt/data/{i}', 'wb', 0).write(bytes(5 << 20))",
        expected="HELD OSError.*No space left",
        twin=_SMALL.format(path="/mnt/data/small"),
    ),
    _disk(
        "a large file",
        "RLIMIT_FSIZE",
        _FILL.format(path="/mnt/data/large"),
        expected="HELD OSError.*File too large",
        twin=_SMALL.format(path="/mnt/data/small"),
    ),
    _disk(
        "a sparse file",
        "RLIMIT_FSIZE",
        "os.truncate(open('/mnt/data/sparse', 'w').name, 1 << 40)",
        expected="HELD OSError.*File too large",
        twin="os.truncate(open('/mnt/data/sparse', 'w').name, 1 << 10); print('WORKS')",
    ),
    _disk(
        "/tmp that is filled",
        "a file system in memory of that size",
        "for i in range(9):\n    open(f'/tmp/{i}', 'wb', 0).write(bytes(5 << 20))",
        expected="HELD OSError.*No space left",
        twin=_SMALL.format(path="/tmp/small"),
    ),
    _disk(
        "/dev/shm that is filled beside /tmp",
        "one file system for both",
        "for i in range(9):\n"
        "    open(f\"{('/tmp', '/dev/shm')[i % 2]}/{i}\", 'wb', 0).write(bytes(5 << 20))",
        expected="HELD OSError.*No space left",
        twin=_SMALL.format(path="/dev/shm/small"),
    ),
    _disk(
        "countless files",
        "a file system of so many",
        "for i in range(10**6):\n    open(f'/mnt/data/{i}', 'w').close()",
        expected="HELD OSError.*No space left|used more files than it may",
        counted=True,
        twin="open('/mnt/data/1', 'w').close(); print('WORKS')",
    ),
    _disk(
        "countless folders, in each other",
        "a file system of so many",
        "for i in range(10**6):\n    os.mkdir('d'); os.chdir('d')",
        expected="HELD OSError.*No space left|used more files than it may",
        counted=True,
        twin="os.mkdir('d'); os.chdir('d'); print('WORKS')",
    ),
    _time(
        "a loop without end",
        "wall time: a KeyboardInterrupt, and the interpreter lives",
        "while True: pass",
        expected="KeyboardInterrupt(.|\n)*limit of",
        twin="for _ in range(9): pass\nprint('WORKS')",
    ),
    _time(
        "sleep without end",
        "wall time",
        "time.sleep(10**6)",
        expected="KeyboardInterrupt(.|\n)*limit of",
        twin="time.sleep(0); print('WORKS')",
    ),
    _time(
        "a loop that catches the interrupt",
        "an end by force after a grace",
        "while True:\n    try:\n        time.sleep(60)\n    except BaseException: pass",
        expected="did not end when it was interrupted",
        twin="try: raise KeyboardInterrupt\nexcept BaseException: print('WORKS')",
        lost=True,
    ),
    _time(
        "an interrupt that is ignored",
        "an end by force after a grace",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
        expected="did not end when it was interrupted",
        twin="signal.signal(signal.SIGINT, signal.SIG_IGN); print('WORKS')",
        lost=True,
    ),
    _time(
        "CPU time of many threads and processes",
        "the keeper adds up what all have used",
        """
        for _ in range(3):
            if os.fork() == 0:
                while True: pass
        while True: pass
        """,
        expected="CPU time was reached",
        wall=20,
        cpu=0.2,
        twin="in_child(lambda: 0); print('WORKS')",
    ),
    _output(
        "output without end",
        "the middle is left out as it arrives; a call that prints far more is interrupted",
        "while True: print('x' * 4000)",
        expected="characters left out(.|\n)*printed far more",
        twin="print('WORKS')",
    ),
    _output(
        "output without end of a program",
        "the same",
        "subprocess.run(['sh', '-c', 'while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxx; done'])",
        expected="characters left out(.|\n)*printed far more|characters left out(.|\n)*limit of",
        twin="subprocess.run(['echo', 'WORKS'])",
    ),
    _output(
        "a value whose text is huge",
        "the middle of it is left out before it is sent",
        "display('x' * (20 << 20))\nraise OSError('shown in part')",
        expected="characters left out(.|\n)*HELD OSError shown in part",
        twin="display('WORKS')",
    ),
    _output(
        "an error whose text is huge",
        "the middle is left out as it arrives",
        "sys.stderr.write('y' * (1 << 20))\nraise OSError('shown in part')",
        expected="characters left out(.|\n)*HELD OSError shown in part",
        twin="print('WORKS')",
    ),
)
