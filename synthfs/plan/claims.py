"""Volumes that claim one place, and which of them has it.

A partition that was made by copying another one keeps the boot sector of the first, which names the place of the first. By
itself such a volume looks like one whose recorded number went stale. What tells them apart is the other volume: where an image
of another volume has that place by a better witness (`plan/place`), the alternative of the place is believed. One that moved
for such a reason has its own place beyond doubt from then on: in a chain of copies, one volume after another finds its place.

The image that lies nearest in time counts: a volume that had the place itself, under the same letter, keeps it. A number that
nothing contradicts but another image yields only to one of the same run, since partitions get other volumes over the years.
Two images of the same number are one volume under two names, and SYSVOL and ESP may be as well.

Not for: places (`plan/place`), the choice between images (`plan/siblings`).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from synthfs.model import Note
from synthfs.plan.place import NotPlaced, Witness
from synthfs.plan.siblings import ONE_RUN, Dated, Devices, Key, Series
from synthfs.plan.volume import Volume, at_place, lone_volume

_ROUNDS = 8
"""A chain of copies that is longer than that is nobody's disk."""

_Holders = Mapping[Key, Mapping[Witness, Series]]


def settled(volumes: Sequence[Dated], witnesses: Iterable[Dated] = ()) -> list[Dated]:
    """`volumes`, with those moved whose place another volume has. `witnesses` are images that are not offered."""
    current, others = list(volumes), [each for each in witnesses if each.volume.witness is Witness.CONFIRMED]
    devices = Devices(volumes)
    for _ in range(_ROUNDS):
        holders = _holders((*current, *others), devices)
        after = [replace(each, volume=_moved(each, devices, holders)) if each.volume.otherwise else each for each in current]
        if all(one.volume is other.volume for one, other in zip(after, current, strict=True)):
            break
        current = after
    return current


def _holders(volumes: Iterable[Dated], devices: Devices) -> _Holders:
    """By place, those who claim it, by what their claim rests on."""
    found: defaultdict[Key, defaultdict[Witness, list[Dated]]] = defaultdict(lambda: defaultdict(list))
    for dated in volumes:
        if dated.volume.key:
            found[*dated.volume.key, devices.name(dated)][dated.volume.witness].append(dated)
    return {key: {how: Series(images) for how, images in claims.items()} for key, claims in found.items()}


def _moved(dated: Dated, devices: Devices, holders: _Holders) -> Volume:
    volume, device = dated.volume, devices.name(dated)
    holder = _holder(dated, volume, device, holders)
    if holder is None or volume.otherwise is None:
        return volume
    because = f"that is the place of {holder.name}"
    match volume.otherwise:
        case NotPlaced(why):
            by_number = volume.witness in (Witness.NUMBER, Witness.NUMBER_AGAINST_LENGTH)
            return _alone(volume, why if by_number else f"{why}, and what else tells its place", because)
        case placed:
            moved = at_place(volume, placed)
            # By now it is no longer its number alone that speaks for this place.
            if _holder(dated, replace(moved, witness=Witness.BOOT_SECTOR), device, holders):
                return _alone(volume, "its number, and what else tells its place, are those of other volumes", because)
            *others, last = placed.notes
            notes = (*others, Note(f"{last.text}; {because}", last.warning))
            return replace(moved, notes=notes, otherwise=None, witness=Witness.CONFIRMED)


def _holder(dated: Dated, volume: Volume, device: str, holders: _Holders) -> Dated | None:
    """The image that has the place of `volume` by a better witness, if it is another volume's."""
    claims = holders.get((*volume.key, device), {}) if volume.key else {}
    better = (series.nearest(dated) for how, series in claims.items() if how < volume.witness)
    nearest = min(filter(None, better), key=dated.nearness, default=None)
    if nearest is None or nearest.letter == dated.letter:
        return None
    if volume.witness is Witness.NUMBER and abs(dated.distance(nearest)) > ONE_RUN:
        return None
    if nearest.volume.image.is_system_partition and volume.image.is_system_partition:
        return None
    # Number and place of one volume: two names of it.
    is_same_number = nearest.volume.origin and volume.origin and nearest.volume.origin.number == volume.origin.number
    return None if is_same_number and volume is dated.volume else nearest


def _alone(volume: Volume, why: str, because: str) -> Volume:
    return replace(lone_volume(volume.image, volume.length, f"{why}: {because}"), origin=volume.origin)
