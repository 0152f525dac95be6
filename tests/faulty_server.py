"""The program under test with one fault put into it: `faulty_server.py FAULT mount STORE MOUNTPOINT …`.

    bug:OPERATION         the body of OPERATION raises an exception that no handler expects, once
    piece:METHOD          so does a method of the Reader; where it is `read`, all reads go to a thread
    sleep                 a read of the MiB at SLEEPY, in its thread, takes 5 seconds
    count                 tells at its end, as JSON, what the kernel asked and how reads were answered
    rest                  every file is one that may rest, after 1 second, and is looked at 5 times a second
    slow-scan             a scan of the store takes 3 seconds longer
    kill:NAME:N:WHEN      SIGKILL `before` or `after` the Nth call of a function, by its dotted name
    slow-freeze           a first write finds its disk frozen after 3 seconds, and a writer waits for 1
    bug-grow:N            a tree that is grown after the first N raises an exception that nobody expects
    stuck-plan            the whole tree is not grown as long as the switch is there
    deaf-holes            what is known of holes is not told as long as the switch is there, and not waited for at first
    held-calls:NAME:…     a system call on a written file, or a mount's `read` of a map, makes `SWITCH.NAME` and then waits
    bug-freeze            a freeze raises an exception that nobody expects
    uncollected           nothing is collected while the switch is there; `SWITCH.found` tells how many objects were in cycles
    clock-jump            the clock on the wall is ten years ahead; sessions are looked at 20 times a second, always
    slow-end              takes 1.5 seconds between the unmount and its end
    unread-pyfuse3        the version of pyfuse3 is one that nobody knows
    late                  --daemon: takes 1.5 seconds to begin, and reports what it found itself to be after the fork
    never                 --daemon: mounts, but answers nothing; is waited for 2 seconds

`bug`, `piece`, `sleep`, `slow-scan`, `kill`, `bug-grow`, `stuck-plan`, `clock-jump`, `held-calls` and the freezes show only
while the file named by FAULT_SWITCH exists; `late` writes its report there. Not for: faults of a store; those need no other
program. Units: bytes and seconds.
"""

import atexit
import gc
import inspect
import itertools
import json
import os
import pkgutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

SLEEPY = 130 << 20
Call = Callable[..., Any]


def switched_on() -> bool:
    return os.path.exists(os.environ["FAULT_SWITCH"])


def held(call: Call) -> Call:
    """`call`, begun when the switch is gone."""

    def waits(*arguments: Any) -> Any:
        while switched_on():
            time.sleep(0.05)
        return call(*arguments)

    return waits


def bug(operation: str) -> None:
    """A tracer, since it needs no knowledge of what the operation is made of. It takes itself away as it raises."""
    from synthfs.fuse.operations import Operations

    code = inspect.unwrap(vars(Operations)[operation]).__code__

    def on_line(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            raise ZeroDivisionError(f"injected into {operation}")
        return on_line

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        return on_line if frame.f_code is code and switched_on() else None

    sys.settrace(on_call)


def piece(name: str) -> None:
    from synthfs.engines.read import Reader

    original = getattr(Reader, name)

    def failing(self: Reader, *arguments: Any) -> Any:
        if switched_on():
            raise ZeroDivisionError(f"injected into {name}")
        return original(self, *arguments)

    setattr(Reader, name, failing)
    if name == "read":
        Reader.try_read = lambda *_: None  # type: ignore[method-assign]


def sleep() -> None:
    from synthfs.engines.read import Reader

    try_read, read = Reader.try_read, Reader.read

    def waits(offset: int) -> bool:
        return SLEEPY <= offset < SLEEPY + (1 << 20) and switched_on()

    def may_wait(self: Reader, offset: int, into: memoryview) -> int | None:
        return None if waits(offset) else try_read(self, offset, into)

    def wait(self: Reader, offset: int, into: memoryview) -> int:
        if waits(offset):
            time.sleep(5)
        return read(self, offset, into)

    Reader.try_read, Reader.read = may_wait, wait  # type: ignore[method-assign]


def count() -> None:
    import pyfuse3

    from synthfs.engines.read import Reader
    from synthfs.fuse import mount, operations

    seen: Counter[str] = Counter()

    class Counting(operations.Operations):
        """Notes each request by its name, a look-up also by the name that is looked for."""

    def counted(name: str, original: Call) -> Call:
        async def operation(self: Counting, *arguments: Any) -> Any:
            seen[name] += 1
            if name == "lookup":
                seen[f"lookup {os.fsdecode(arguments[1])}"] += 1
            return await original(self, *arguments)

        return operation

    for name, original in inspect.getmembers(operations.Operations, inspect.iscoroutinefunction):
        if hasattr(pyfuse3.Operations, name):
            setattr(Counting, name, counted(name, original))
    setattr(mount, "Operations", Counting)  # noqa: B010  # the module exports no such name for assigning

    try_read = Reader.try_read

    def tried(self: Reader, offset: int, into: memoryview) -> int | None:
        found = try_read(self, offset, into)
        seen["missed" if found is None else "hit"] += 1
        return found

    Reader.try_read = tried  # type: ignore[method-assign]
    atexit.register(lambda: print(json.dumps(seen), file=sys.stderr, flush=True))


def rest() -> None:
    from synthfs.engines.read import Reader
    from synthfs.fuse import mount
    from synthfs.host.files import OpenSource

    Reader.rest.__defaults__ = (1.0,)
    mount._HOUSEKEEPING = 0.2
    OpenSource.on_zfs = True  # type: ignore[method-assign,assignment]


def unread_pyfuse3() -> None:
    import pyfuse3

    pyfuse3.__version__ = "3.99.0"


def slow_scan() -> None:
    from synthfs.cli import common

    survey: Call = vars(common)["survey"]

    def slowly(*arguments: Any, **named: Any) -> Any:
        if switched_on():
            time.sleep(3)
        return survey(*arguments, **named)

    setattr(common, "survey", slowly)  # noqa: B010  # the module exports no such name for assigning


def kill(name: str, number: str, when: str) -> None:
    place, _, attribute = name.rpartition(".")
    owner: Any = pkgutil.resolve_name(place)
    original: Call = getattr(owner, attribute)
    calls = itertools.count(1)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        is_it = switched_on() and next(calls) == int(number)
        if is_it and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **named)
        if is_it:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, attribute, wrapped)


def slow_freeze() -> None:
    from synthfs.engines.session import Scratch
    from synthfs.fuse import writing

    begin: Call = Scratch.begin

    def slowly(*arguments: Any) -> Any:
        if switched_on():
            time.sleep(3)
        return begin(*arguments)

    Scratch.begin = slowly  # type: ignore[method-assign,assignment]
    writing.LIMIT = 1.0


def held_calls(*names: str) -> None:
    from synthfs.engines.read import Reader
    from synthfs.fuse import operations
    from synthfs.host import scratch

    def holding(name: str, call: Call) -> Call:
        def waits(*arguments: Any) -> Any:
            if switched_on():
                if os.RWF_NOWAIT in arguments[3:]:
                    raise BlockingIOError
                open(f"{os.environ['FAULT_SWITCH']}.{name}", "w").close()
            return held(call)(*arguments)

        return waits

    class Held:
        """`os`, for that module."""

        def __getattr__(self, name: str) -> Any:
            call = getattr(os, name)
            return holding(name, call) if name in names else call

    setattr(scratch, "os", Held())  # noqa: B010  # the module exports no such name for assigning
    # Not those of others: a freeze reads as well.
    held_reader = type("HeldReader", (Reader,), {"try_read": lambda *_: None, "read": holding("read", Reader.read)})
    if "read" in names:
        setattr(operations, "Reader", held_reader)  # noqa: B010  # the module exports no such name for assigning


def bug_freeze() -> None:
    from synthfs.engines.session import Scratch

    begin: Call = Scratch.begin

    def failing(*arguments: Any) -> Any:
        if switched_on():
            raise ZeroDivisionError("injected into begin")
        return begin(*arguments)

    Scratch.begin = failing  # type: ignore[method-assign,assignment]


def bug_grow(unharmed: str) -> None:
    from synthfs.plan.garden import Gardener

    grow: Call = Gardener.grow
    calls = itertools.count(1)

    def failing(*arguments: Any) -> Any:
        if next(calls) > int(unharmed) and switched_on():
            raise ZeroDivisionError("injected into grow")
        return grow(*arguments)

    Gardener.grow = failing  # type: ignore[method-assign,assignment]


def stuck_plan() -> None:
    from synthfs.plan.garden import Gardener

    Gardener.grow = held(Gardener.grow)  # type: ignore[method-assign]


def deaf_holes() -> None:
    from synthfs.fuse import mount
    from synthfs.host import holes

    holes.known = held(holes.known)
    mount._AT_FIRST = 0.0


def uncollected() -> None:
    place = os.environ["FAULT_SWITCH"]

    def watch() -> None:
        while not switched_on():
            time.sleep(0.01)
        gc.collect()
        gc.disable()
        with open(f"{place}.ready", "w"):
            pass
        while switched_on():
            time.sleep(0.01)
        found = gc.collect()
        with open(f"{place}.part", "w") as file:
            file.write(str(found))
        os.rename(f"{place}.part", f"{place}.found")

    threading.Thread(target=watch, daemon=True).start()


def clock_jump() -> None:
    from synthfs.fuse import control

    control._PAUSE = 0.05
    seconds, nanoseconds, jump = time.time, time.time_ns, 10 * 365 * 86400
    time.time = lambda: seconds() + jump * switched_on()
    time.time_ns = lambda: nanoseconds() + jump * 10**9 * switched_on()


def slow_end() -> None:
    from synthfs.fuse.operations import Operations

    close = Operations.close

    def slowly(self: Operations) -> None:
        time.sleep(1.5)
        close(self)

    Operations.close = slowly  # type: ignore[method-assign]


def after_fork(then: Callable[[], None]) -> None:
    from synthfs.host import background

    become = background._become_server

    def become_server(report: int) -> None:
        become(report)
        then()

    background._become_server = become_server


def late() -> None:
    def report_and_wait() -> None:
        facts = {"trio": "trio" in sys.modules, "threads": threading.active_count(), "pid": os.getpid()}
        with open(os.environ["FAULT_SWITCH"], "w") as report:
            json.dump(facts, report)
        time.sleep(1.5)

    after_fork(report_and_wait)


def never() -> None:
    from synthfs.host import background

    def deaf() -> None:
        import trio

        from synthfs.fuse.operations import Operations

        async def lookup(*_: Any) -> Any:
            await trio.sleep_forever()

        Operations.lookup = lookup  # type: ignore[method-assign,assignment]

    background.start.__defaults__ = (2.0,)
    after_fork(deaf)


FAULTS: dict[str, Call] = {
    "bug": bug,
    "piece": piece,
    "sleep": sleep,
    "count": count,
    "rest": rest,
    "slow-scan": slow_scan,
    "kill": kill,
    "slow-freeze": slow_freeze,
    "bug-freeze": bug_freeze,
    "held-calls": held_calls,
    "uncollected": uncollected,
    "clock-jump": clock_jump,
    "slow-end": slow_end,
    "unread-pyfuse3": unread_pyfuse3,
    "late": late,
    "never": never,
    "bug-grow": bug_grow,
    "stuck-plan": stuck_plan,
    "deaf-holes": deaf_holes,
}

if __name__ == "__main__":
    fault, *rest_of_it = sys.argv.pop(1).split(":")
    FAULTS[fault](*rest_of_it)

    from synthfs.cli.main import main

    sys.argv[0] = "synthfs"
    main()
