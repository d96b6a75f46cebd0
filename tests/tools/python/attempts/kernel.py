"""Attempts at the kernel: calls with a history of holes, and more rights."""

from __future__ import annotations

from functools import partial

from tests.tools.python.attempts.attempt import Attempt


def _call(name: str, arguments: str, title: str, privileged: bool = False) -> Attempt:
    code = f"system({name!r}, {arguments})"
    return Attempt(
        "kernel", title, f"filter: {name}", code, "HELD PermissionError", privileged=privileged
    )


_right = partial(Attempt, "rights", expected="HELD (PermissionError|OSError)", privileged=True)

KERNEL = (
    _call("mount", "0, 0, 0, 0, 0", "a mount", privileged=True),
    _call("umount2", "b'/no such', 0", "an unmount, to see what is below", privileged=True),
    _call("pivot_root", "b'/no such', b'/no such'", "another root", privileged=True),
    _call("fsopen", "b'no such', 0", "a mount by the new calls", privileged=True),
    _call("open_tree", "-1, b'x', 0", "a copy of a mount"),
    _call("unshare", "0x10000000", "a user namespace of its own, by unshare"),
    _call("clone3", "0, 0", "a user namespace of its own, by clone3"),
    Attempt(
        "kernel",
        "a user namespace of its own, by clone",
        "filter: clone's flags",
        "system('clone', 0x10000000 | 17, 0, 0, 0, 0)",
        "HELD PermissionError",
    ),
    _call("ptrace", "0, 0, 0, 0", "ptrace"),
    _call("process_vm_readv", "-1, 0, 0, 0, 0, 0", "another process's memory"),
    _call("pidfd_getfd", "-1, 0, 0", "another process's descriptors"),
    _call("bpf", "-1, 0, 0", "BPF programs", privileged=True),
    _call("perf_event_open", "0, 0, -1, -1, 0", "performance counters", privileged=True),
    _call("userfaultfd", "-1", "page faults handled by itself"),
    _call("io_uring_setup", "1, 0", "io_uring"),
    _call("keyctl", "-1, 0", "the key ring of the user"),
    _call("add_key", "0, 0, 0, 0, 0", "a new key"),
    _call("init_module", "0, 0, 0", "a kernel module", privileged=True),
    _call("kexec_load", "-1, -1, 0, -1", "another kernel", privileged=True),
    _call("reboot", "0, 0, 0, 0", "a restart", privileged=True),
    _call("swapon", "b'/no such', 0", "swap", privileged=True),
    _call("syslog", "10, 0, 0", "the kernel's log, by its call", privileged=True),
    _call("clock_settime", "-1, 0", "the clock"),
    _call("quotactl", "-1, 0, 0, 0", "quotas"),
    _call("fanotify_init", "-1, 0", "other processes' files, watched", privileged=True),
    _call("name_to_handle_at", "-1, b'x', 0, 0, 0", "handles of files"),
    _call("personality", "0x0040000", "addresses without randomness"),
    Attempt(
        "kernel",
        "a call that is newer than the filter",
        "filter: later numbers do not exist",
        "system('cachestat', -1, 0, 0, 0)",
        "HELD PermissionError",
    ),
    Attempt(
        "kernel",
        "keys typed into a terminal",
        "filter: TIOCSTI; no terminal",
        """
        reading, writing = os.pipe()
        try:
            fcntl.ioctl(reading, 0x5412, b'x')
        except OSError as error:
            if error.errno == errno.EPERM:
                raise
        finally:
            os.close(reading), os.close(writing)
        """,
        "HELD PermissionError",
    ),
    Attempt(
        "kernel",
        "calls of 32-bit programs",
        "filter: another architecture ends the process",
        """
        memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        memory.write(bytes.fromhex('53b814000000cd805bc3'))  # push rbx; getpid, by int 0x80; ret
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        code = in_child(lambda: ctypes.CFUNCTYPE(ctypes.c_int)(address)() and 0)
        if code:
            raise OSError(f'ended by {code}')
        """,
        "HELD OSError ended by -31",
    ),
    _right(
        "the number of root",
        "one user is mapped; no capability",
        "assert in_child(lambda: os.setresuid(0, 0, 0)) == 0",
        expected="HELD AssertionError",
    ),
    _right(
        "a file that is given to root",
        "no capability",
        "import tempfile; file = tempfile.NamedTemporaryFile(); os.chown(file.name, 0, 0)",
    ),
    _right(
        "another group",
        "setgroups is denied",
        "assert in_child(lambda: os.setgroups([0])) == 0",
        expected="HELD AssertionError",
    ),
    _right(
        "capabilities, taken back",
        "none is left to take, in any set",
        """
        lines = dict(l.split(':', 1) for l in open('/proc/self/status').read().splitlines())
        if not any(int(lines[f'Cap{name}'], 16) for name in ('Eff', 'Prm', 'Inh', 'Bnd', 'Amb')):
            raise OSError('none is left')
        """,
        expected="HELD OSError none is left",
        privileged=False,
    ),
    _right(
        "programs that run as root (setuid)",
        "no_new_privs; nosuid mounts",
        """
        assert 'NoNewPrivs:\\t0' in open('/proc/self/status').read()
        assert not os.statvfs('/usr').f_flag & os.ST_NOSUID
        """,
        expected="HELD AssertionError",
        privileged=False,
    ),
    _right(
        "the machine's name", "no capability; filter", "socket.sethostname(socket.gethostname())"
    ),
    _right("a higher priority", "no capability", "os.nice(-1)"),
    _right(
        "higher limits",
        "hard limits",
        """
        import resource
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))
        """,
        expected="HELD (ValueError|PermissionError)",
        outside=False,
        twin="import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard)); print('WORKS')",
    ),
    _right(
        "a turn after others when memory ends",
        "no capability; Landlock",
        "open('/proc/self/oom_score_adj', 'w').write('0')",
    ),
)
