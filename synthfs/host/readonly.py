"""Runs work in a thread that can read files and change none. The kernel refuses the changes, also to root (seccomp).

For a library that opens files with more rights than reading needs. SQLite, as root, gives the files beside a database to
the database's owner; it opens the `-wal` for writing and may remove it. The filter belongs to the one thread and ends
with it. It needs no privilege.

Not for: keeping hostile code in. Refused is what SQLite could do to a file that it reads: to open one for writing, to make
one, to remove one, to give it to somebody.
Source: seccomp(2), linux/audit.h, and the system call tables of the kernel.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 38, 22
_SECCOMP_MODE_FILTER = 2
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
"""SECCOMP_RET_ALLOW, and SECCOMP_RET_ERRNO, to which the errno is added."""

_LOAD, _IS, _HAS, _RETURN = 0x20, 0x15, 0x45, 0x06
"""BPF: load a word of seccomp_data, jump if it equals, jump if it has one of the bits, return."""
_INSTRUCTION = struct.Struct("=HBBI")
"""struct sock_filter: code, instructions to skip if true, and if false, operand."""
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data; an argument has 8 bytes, the low half first."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_OPENS: dict[int, dict[int, int]] = {
    0xC000003E: {2: 1, 257: 2},  # x86_64
    0x40000003: {5: 1, 295: 2},  # i386
    0xC00000B7: {56: 2},  # aarch64
    0x40000028: {5: 1, 322: 2},  # arm
    0xC00000F3: {56: 2},  # riscv64
}
"""By AUDIT_ARCH: the numbers of open and openat, and which argument has the flags."""
_OTHERS: dict[int, tuple[int, ...]] = {
    0xC000003E: (93, 91, 87, 263),
    0x40000003: (95, 207, 94, 10, 301),
    0xC00000B7: (55, 52, 35),
    0x40000028: (95, 207, 94, 10, 328),
    0xC00000F3: (55, 52, 35),
}
"""The numbers of fchown (and fchown32), fchmod, unlink and unlinkat."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def run(work: Callable[[], T], seconds: float) -> T:
    """What `work` returns or raises, in a thread of its own that can write to no file.

    Raises TimeoutError where that takes longer than `seconds`; the thread is then left to itself. Raises OSError where
    the kernel or the processor has no such filter: `work` is not called then.
    """
    made: list[T] = []
    failed: list[BaseException] = []

    def body() -> None:
        try:
            _refuse_writing()
            made.append(work())
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=body, name="read-only", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:.0f} seconds")
    if failed:
        raise failed[0]
    return made[0]


def _refuse_writing() -> None:
    """Puts the filter on the calling thread, for good, and makes sure that it works."""
    code = _instructions()
    program = _Program(len(code) // _INSTRUCTION.size, code)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0:
        _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(program))
    reading, writing = os.pipe()
    try:
        # Of these the first would succeed without a filter; the others change nothing.
        attempts: tuple[Callable[[], object], ...] = (
            lambda: os.close(os.open(os.devnull, os.O_RDWR)),
            lambda: os.fchown(reading, -1, -1),
            lambda: os.unlink(""),
        )
        for attempt in attempts:
            try:
                attempt()
            except PermissionError:
                continue
            except OSError:
                pass
            raise OSError(errno.ENOSYS, "this kernel or processor has no filter that keeps a reader from writing (seccomp)")
    finally:
        os.close(reading)
        os.close(writing)


def _instructions() -> bytes:
    """The filter, for each architecture: a kernel runs programs of more than one."""

    def refuse(number: int) -> list[bytes]:
        return [_INSTRUCTION.pack(_RETURN, 0, 0, _REFUSE | number)]

    allow = _INSTRUCTION.pack(_RETURN, 0, 0, _ALLOW)
    program: list[bytes] = []
    for architecture, opens in _OPENS.items():
        block = [_INSTRUCTION.pack(_LOAD, 0, 0, _NUMBER)]
        for call in _OTHERS[architecture]:
            block += [_INSTRUCTION.pack(_IS, 0, 1, call), *refuse(errno.EPERM)]
        for call, argument in opens.items():
            flags = _INSTRUCTION.pack(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)
            block += [_INSTRUCTION.pack(_IS, 0, 4, call), flags]
            block += [_INSTRUCTION.pack(_HAS, 0, 1, _WRITES), *refuse(errno.EACCES), allow]
        block.append(allow)
        program += [_INSTRUCTION.pack(_LOAD, 0, 0, _ARCHITECTURE), _INSTRUCTION.pack(_IS, 0, len(block), architecture), *block]
    return b"".join((*program, allow))
