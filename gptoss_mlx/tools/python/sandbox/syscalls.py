"""Numbers of the system calls that a model's code may not make, for each architecture."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

NEWEST = 450
"""The newest call that has been judged; on both architectures every later one is refused."""

_BOTH = {
    # other processes
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},
    **{"kcmp": (312, 272), "process_madvise": (440, 440), "pidfd_send_signal": (424, 424)},
    **{"pidfd_open": (434, 434), "pidfd_getfd": (438, 438)},
    # mounts and namespaces
    **{"mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51)},
    **{"open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430)},
    **{"fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433)},
    **{"mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268)},
    # parts of the kernel with a history of holes
    **{"bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282)},
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426)},
    **{"io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218)},
    **{"keyctl": (250, 219), "fanotify_init": (300, 262), "fanotify_mark": (301, 263)},
    **{"name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265)},
    **{"lookup_dcookie": (212, 18), "nfsservctl": (180, 42)},
    # memory that no limit counts
    **{"memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194)},
    **{"shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193)},
    **{"semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189)},
    **{"msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181)},
    **{"vmsplice": (278, 75), "inotify_init1": (294, 26), "landlock_create_ruleset": (444, 444)},
    # the machine itself
    **{"init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106)},
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142)},
    **{"swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "syslog": (103, 116)},
    **{"quotactl": (179, 60), "quotactl_fd": (443, 443), "vhangup": (153, 58)},
    **{"settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171)},
    **{"clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162)},
    **{"move_pages": (279, 239), "migrate_pages": (256, 238)},
}
"""Name -> number on x86_64, on aarch64."""

_X86_ONLY = {
    "inotify_init": 253,
    **{"modify_ldt": 154, "iopl": 172, "ioperm": 173, "uselib": 134, "ustat": 136, "sysfs": 139},
    **{"_sysctl": 156, "create_module": 174, "get_kernel_syms": 177, "query_module": 178},
    **{"getpmsg": 181, "putpmsg": 182, "afs_syscall": 183, "tuxcall": 184, "security": 185},
    **{"set_thread_area": 205, "get_thread_area": 211, "vserver": 236},
}

REFUSED: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "x86_64": {name: pair[0] for name, pair in _BOTH.items()} | _X86_ONLY,
        "aarch64": {name: pair[1] for name, pair in _BOTH.items()},
    }
)
"""Architecture -> name -> number."""

JUDGED: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "x86_64": {
            **{"socket": 41, "socketpair": 53, "clone": 56, "clone3": 435},
            **{"ioctl": 16, "personality": 135, "setsockopt": 54},
        },
        "aarch64": {
            **{"socket": 198, "socketpair": 199, "clone": 220, "clone3": 435},
            **{"ioctl": 29, "personality": 92, "setsockopt": 208},
        },
    }
)
"""Calls that are refused for some arguments."""
