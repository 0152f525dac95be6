"""Volumes whose place is in doubt, against those whose place is not.

A partition that was made by copying another one keeps the boot sector of the first, which names the place of the first. By
itself such a volume looks like one whose recorded number went stale. What tells them apart is the other volume: where an image
of another volume has that place beyond doubt, the boot sector is the stale one, and the alternative of the place is believed
(`Placed.otherwise`).

The image that lies nearest in time counts: a volume that had the place itself, under the same letter, keeps it. Two images of
the same number are one volume under two names, and SYSVOL and ESP may be as well.

Not for: places (`plan/place`), the choice between images (`plan/siblings`).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from synthfs.model import Note
from synthfs.plan.place import NotPlaced
from synthfs.plan.siblings import Dated, Devices, Key, Series
from synthfs.plan.volume import Volume, at_place, lone_volume


def settled(volumes: Sequence[Dated]) -> list[Dated]:
    """`volumes`, with those moved whose place another volume has beyond doubt."""
    if not any(dated.volume.otherwise for dated in volumes):
        return list(volumes)
    devices = Devices(volumes)
    certain: defaultdict[Key, list[Dated]] = defaultdict(list)
    for dated in volumes:
        if dated.volume.key and not dated.volume.disputed:
            certain[*dated.volume.key, devices.name(dated)].append(dated)
    holders = {key: Series(images) for key, images in certain.items()}
    return [replace(dated, volume=_moved(dated, devices.name(dated), holders)) for dated in volumes]


def _moved(dated: Dated, device: str, holders: Mapping[Key, Series]) -> Volume:
    volume = dated.volume
    holder = _holder(dated, volume, device, holders)
    if holder is None or volume.otherwise is None or volume.origin is None:
        return volume
    because = f"that is the place of {holder.name}"
    match volume.otherwise:
        case NotPlaced(why):
            return _alone(volume, f"{why}; its boot sector or its length names a place, but {because}")
        case placed:
            moved = at_place(volume, placed)
            if other := _holder(dated, moved, device, holders):
                return _alone(volume, f"its number means the place of {other.name}, its boot sector that of {holder.name}")
            *others, last = placed.notes
            return replace(moved, notes=(*others, Note(f"{last.text}; {because}", last.warning)))


def _holder(dated: Dated, volume: Volume, device: str, holders: Mapping[Key, Series]) -> Dated | None:
    """The image that has the place of `volume` beyond doubt, if it is another volume's."""
    series = holders.get((*volume.key, device)) if volume.key else None
    nearest = series.nearest(dated) if series else None
    if nearest is None or nearest.letter == dated.letter:
        return None
    if nearest.volume.image.is_system_partition and volume.image.is_system_partition:
        return None
    # Number and place of one volume: two names of it.
    is_same_number = nearest.volume.origin and volume.origin and nearest.volume.origin.number == volume.origin.number
    return None if is_same_number and volume is dated.volume else nearest


def _alone(volume: Volume, why: str) -> Volume:
    return replace(lone_volume(volume.image, volume.length, why), origin=volume.origin)
