"""The fuzz target's seeds, replayed: what the fuzzer ever found interesting keeps the laws, and so do its neighbours.

Expected outcomes are those of the honest seeds by their construction (makeseeds). Not for: finding anything new, which
takes longer (`scripts/fuzz`). Units: bytes.
"""

import random
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import makeseeds
from fuzz_target import check, decode, encode, fields, mutator, repaired
from synthfs.plan import layout
from synthfs.urbackup import rawfile

DIRECTORY = Path(__file__).parent / "seeds"


def _found() -> dict[str, bytes]:
    """What the fuzzer found, minimised."""
    with zipfile.ZipFile(DIRECTORY / "found.zip") as archive:
        return {name: archive.read(name) for name in sorted(archive.namelist())}


SEEDS = {path.name: path.read_bytes() for path in sorted(DIRECTORY.iterdir()) if path.suffix != ".zip"} | _found()
NAMED = dict(makeseeds.seeds())
ALONE = {
    # The sibling of "gpt-sibling" is a copy of its volume, under a number whose partition is too small.
    *("gpt-sibling", "enlarged", "gpt-lvm", "gpt-too-long", "gpt-wrong-place", "mbr-dynamic", "mbr-extended", "mbr-grub"),
    *("mbr-protective", "none", "short-record"),
}
NEIGHBOURS = 6


def test_seeds_keep_the_laws() -> None:
    """Each, and some that differ from it in a number or two, the same ones in every run."""
    dice = random.Random(0)
    change = mutator(lambda data, _: _flipped(data, dice))
    outcomes = Counter(check(data) for data in SEEDS.values())
    outcomes.update(check(change(data, 16384, dice.getrandbits(32))) for data in SEEDS.values() for _ in range(NEIGHBOURS))
    # A replay that no longer gets past the first check would prove nothing.
    assert min(outcomes[outcome] for outcome in ("placed", "alone", "refused")) > 50


def _flipped(data: bytes, dice: random.Random) -> bytes:
    """One byte changed: what libFuzzer would do in its simplest mood."""
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]


def test_outcomes() -> None:
    """The honest ones find their place, and those with nothing to go by are alone; none is refused."""
    assert {name: check(data) for name, data in NAMED.items()} == {
        name: "alone" if name in ALONE else "placed" for name in NAMED
    }


def test_seeds_are_small() -> None:
    """They are kept in the repository, and a replay is part of the suite."""
    assert sum(map(len, SEEDS.values())) < 300 * 1024
    began = time.process_time()
    for data in SEEDS.values():
        check(data)
    assert time.process_time() - began < 0.1 * len(SEEDS)


def test_input_is_what_it_stands_for() -> None:
    """Packing loses nothing, whatever the runs of zeroes are."""
    dice = random.Random(1)
    for length in (0, 1, 2, 511, 65535, 65536, 200_000):
        mbr = bytes(length) + dice.randbytes(length % 700) + bytes(length)
        boot, head = dice.randbytes(2048), dice.randbytes(1152)
        assert decode(encode(mbr, boot=boot, head=head, size=12345, flags=6)) == (6, 12345, boot, head, mbr)


def test_repair_is_idempotent_and_right() -> None:
    """An honest file is left as it is; one with another number in it gets checksums that the package accepts."""
    _, _, _, _, honest = decode(NAMED["gpt"])
    assert repaired(honest) == honest
    assert len(fields(honest)) > 80
    spoilt = honest.replace(b"Basic data".decode().encode("utf-16-le"), b"Other data".decode().encode("utf-16-le"))
    assert spoilt != honest
    assert repaired(spoilt) != spoilt
    _, size, boot, head, _ = decode(NAMED["gpt"])
    assert check(encode(spoilt, boot=boot, head=head, size=size)) == "placed"
    assert check(encode(spoilt, boot=boot, head=head, size=size, flags=0)) == "alone"


def _nothing(*_: object) -> None:
    """Checks nothing."""


@pytest.mark.parametrize(
    ("module", "name", "fault"),
    [
        (layout, "_check_apart", _nothing),
        (rawfile, "volume_length", lambda size, _: size),
        (layout, "with_gpt", lambda given, *_: given),
    ],
    ids=["overlaps are not refused", "the wrapper is taken for a part of the volume", "no new identity"],
)
def test_laws_bite(monkeypatch: pytest.MonkeyPatch, module: object, name: str, fault: Callable[..., object]) -> None:
    """A package with a fault does not get through the same replay."""
    monkeypatch.setattr(module, name, fault)
    monkeypatch.setattr("synthfs.plan.renew.with_gpt", layout.with_gpt)
    dice = random.Random(2)
    change = mutator(lambda data, _: data)
    names = [dice.choice(("gpt", "mbr", "gpt-sibling")) for _ in range(300)]
    with pytest.raises((AssertionError, ValueError)):
        _check_all([change(NAMED[name], 16384, dice.getrandbits(32)) for name in names])


def _check_all(inputs: list[bytes]) -> None:
    for data in inputs:
        check(data)
