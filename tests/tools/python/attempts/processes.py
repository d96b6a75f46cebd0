"""Attempts at other processes, and to outlive the sandbox."""

from __future__ import annotations

from functools import partial

from tests.tools.python.attempts.attempt import Attempt

_process = partial(Attempt, "processes")

PROCESSES = (
    _process(
        "a signal to the product",
        "PID namespace",
        "os.kill(HOST['pid'], 0)",
        expected="HELD ProcessLookupError",
    ),
    _process(
        "a list of the machine's processes",
        "PID namespace: /proc shows its own",
        "assert str(HOST['pid']) in os.listdir('/proc')",
        expected="HELD AssertionError",
    ),
    _process(
        "SIGKILL to the keeper",
        "Landlock; the first process of a namespace takes none from inside",
        "os.kill(1, signal.SIGKILL); raise OSError('it takes none')",
        expected="HELD (PermissionError|ProcessLookupError|OSError)",
        outside=False,
        twin="c = subprocess.Popen(['sleep', '9']); c.send_signal(signal.SIGKILL)\n"
        "assert c.wait() == -signal.SIGKILL; print('WORKS')",
    ),
    _process(
        "SIGSTOP to the keeper",
        "Landlock; the first process of a namespace takes none from inside",
        "os.kill(1, signal.SIGSTOP); raise OSError('it takes none')",
        expected="HELD (PermissionError|ProcessLookupError|OSError)",
        outside=False,
        twin="c = subprocess.Popen(['sleep', '9']); c.send_signal(signal.SIGSTOP)\n"
        "os.waitpid(c.pid, os.WUNTRACED); c.kill(); c.wait(); print('WORKS')",
    ),
    _process(
        "SIGKILL to every process",
        "PID namespace",
        "os.kill(-1, signal.SIGKILL); raise OSError('only its own ended')",
        expected="HELD (PermissionError|ProcessLookupError|OSError)",
        outside=False,
        twin="c = subprocess.Popen(['sleep', '9']); os.kill(-1, signal.SIGKILL)\n"
        "assert c.wait() == -signal.SIGKILL; print('WORKS')",
    ),
    _process(
        "SIGKILL to its own group",
        "a session of its own",
        "os.killpg(0, signal.SIGKILL)",
        expected="killed by SIGKILL",
        outside=False,
        twin="print('WORKS')",
        fresh=True,
        lost=True,
    ),
    _process(
        "a fork bomb",
        "RLIMIT_NPROC, which is counted in the user namespace",
        """
        while True:
            if os.fork() == 0:
                try:
                    time.sleep(60)
                finally:
                    os._exit(0)
        """,
        expected="HELD BlockingIOError",
        outside=False,
        twin="assert in_child(lambda: 7) == 7; print('WORKS')",
        fresh=True,
    ),
    _process(
        "a fork bomb whose every process forks",
        "RLIMIT_NPROC; the namespace ends as one",
        """
        def forks():
            while True:
                try:
                    os.fork()
                except OSError:
                    time.sleep(0.01)
        os.fork() or forks()
        time.sleep(0.3)
        os.kill(-1, signal.SIGKILL)
        raise OSError('they have ended')
        """,
        expected="HELD OSError they have ended",
        outside=False,
        twin="assert in_child(lambda: in_child(lambda: 5)) == 5; print('WORKS')",
        fresh=True,
    ),
    _process(
        "a bomb of threads",
        "RLIMIT_NPROC",
        """
        done = threading.Event()
        try:
            while True:
                threading.Thread(target=done.wait, daemon=True).start()
        finally:
            done.set()
        """,
        expected="HELD RuntimeError can't start new thread",
        outside=False,
        twin="t = threading.Thread(target=lambda: print('WORKS')); t.start(); t.join()",
        fresh=True,
    ),
    _process(
        "SIGSTOP to itself, for ever",
        "wall time, then an end by force",
        "os.kill(os.getpid(), signal.SIGSTOP)",
        expected="did not end when it was interrupted",
        wall=0.5,
        outside=False,
        twin="print('WORKS')",
        fresh=True,
        lost=True,
    ),
    _process(
        "another program in its place",
        "programs inherit all walls; the pipes close with it",
        "os.execv('/bin/sh', ['sh', '-c', 'echo; exit 7'])",
        expected="exit code 7",
        outside=False,
        twin="assert subprocess.run(['sh', '-c', 'exit 7']).returncode == 7; print('WORKS')",
        fresh=True,
        lost=True,
    ),
    _process(
        "walls left behind by starting a program",
        "filter, Landlock and namespaces are inherited",
        """
        code = "import socket; socket.socket()"
        subprocess.run([sys.executable, '-c', code], check=True, stderr=subprocess.DEVNULL)
        """,
        expected="HELD CalledProcessError",
    ),
)
