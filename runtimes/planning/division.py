"""Layers of one model on several devices: on more than one card, or partly on the CPU."""

from collections.abc import Mapping, Sequence


def fill(parts: Sequence[int], rooms: Mapping[str, int]) -> dict[str, list[int]] | None:
    """Put neighbours on devices, in the order of both: each device takes as many as it has room for.

    Args:
        parts: bytes of each part of the model.
        rooms: bytes by device.

    Returns:
        The parts by device, without devices that got none. None if they do not all fit.
    """
    left = list(parts)
    placed: dict[str, list[int]] = {}
    for device, room in rooms.items():
        free = room
        while left and left[0] <= free:
            free -= left[0]
            placed.setdefault(device, []).append(left.pop(0))
    return None if left else placed


def in_words(layers: Mapping[str, int]) -> str:
    """How many layers are where: `20 of 32 layers are on cuda:0, 12 on cpu.`"""
    first, *others = [(count, device) for device, count in layers.items() if count]
    return (
        f"{first[0]} of {sum(layers.values())} layers are on {first[1]}{''.join(f', {n} on {d}' for n, d in others)}."
    )
