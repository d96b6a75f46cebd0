"""Attempts to reach a network, or anything else through a socket."""

from __future__ import annotations

from functools import partial

from tests.tools.python.attempts.attempt import Attempt

_network = partial(Attempt, "network")

NETWORK = (
    _network(
        "a TCP connection to the machine itself",
        "filter: only AF_UNIX sockets; a network namespace without interfaces",
        "socket.create_connection(('127.0.0.1', HOST['port']), 1).close()",
        expected="HELD PermissionError",
    ),
    _network(
        "HTTP through the standard library",
        "filter",
        """
        import urllib.request
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{HOST['port']}/", timeout=0.2)
        except TimeoutError:
            pass  # it was connected
        """,
        expected="HELD URLError.*not permitted",
    ),
    _network(
        "a TCP connection from a shell",
        "filter, which programs inherit",
        """
        command = f"exec 3<>/dev/tcp/127.0.0.1/{HOST['port']}"
        subprocess.run(["bash", "-c", command], check=True)
        """,
        expected="HELD CalledProcessError",
    ),
    _network(
        "a TCP connection over IPv6",
        "filter",
        "socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()",
        expected="HELD PermissionError",
    ),
    _network(
        "a TCP server",
        "filter",
        "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); s.close()",
        expected="HELD PermissionError",
    ),
    _network(
        "UDP",
        "filter",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', HOST['udp']))",
        expected="HELD PermissionError",
    ),
    _network(
        "DNS",
        "filter; no resolver's settings",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 53))",
        expected="HELD PermissionError",
    ),
    _network(
        "a raw socket (ping)",
        "filter",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()",
        expected="HELD PermissionError",
        privileged=True,
    ),
    _network(
        "a packet socket (sniffing)",
        "filter",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()",
        expected="HELD PermissionError",
        privileged=True,
    ),
    _network(
        "netlink (routes, interfaces)",
        "filter",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()",
        expected="HELD PermissionError",
    ),
    _network(
        "a socket of the machine, by its path",
        "its path is not in the file system",
        "s = socket.socket(socket.AF_UNIX); s.connect(HOST['unix'])",
        expected="HELD FileNotFoundError",
    ),
    _network(
        "a socket of the machine, by its abstract name",
        "network namespace",
        "s = socket.socket(socket.AF_UNIX); s.connect(HOST['abstract'])",
        expected="HELD ConnectionRefusedError",
    ),
    _network(
        "descriptors sent to the machine over what it was given",
        "what it was given are pipes, which carry none",
        """
        for descriptor in map(int, os.listdir('/proc/self/fd')):
            if os.path.exists(f'/proc/self/fd/{descriptor}'):
                assert not os.readlink(f'/proc/self/fd/{descriptor}').startswith('socket:')
        raise OSError('no socket')
        """,
        expected="HELD OSError no socket",
        outside=False,
        fresh=True,
        twin="a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'; print('WORKS')",
    ),
    _network(
        "another process's network",
        "filter: setns; PID namespace",
        "system('setns', -1, 0x40000000)",
        expected="HELD PermissionError",
    ),
    _network(
        "a network namespace of its own making",
        "filter: unshare, clone3, and clone's flags",
        "system('unshare', 0x10000000 | 0x40000000)",
        expected="HELD PermissionError",
    ),
    _network(
        "the list of interfaces",
        "no /sys",
        "os.listdir('/sys/class/net')",
        expected="HELD FileNotFoundError",
    ),
)
