"""A deep copy of everything an object holds, as values that can be compared: secrets, keys, arrays and all."""

from enum import Enum

import numpy as np

from secure_agg.keys import AgreementKey, SigningKey

ATOMS = (str, bytes, int, float, type(None), Enum)


def snapshot(value, held=()):
    """Describe a value and all that it refers to; two descriptions are equal if and only if nothing has changed."""
    if isinstance(value, ATOMS):
        return value
    if id(value) in held:
        return "seen above"
    held = (*held, id(value))
    match value:
        case np.ndarray():
            shown = (value.dtype.str, value.shape, value.tobytes(), value.flags.writeable)
        case AgreementKey() | SigningKey():
            shown = (type(value).__name__, value.to_bytes())
        case dict():
            shown = [(snapshot(key, held), snapshot(item, held)) for key, item in value.items()]
        case list() | tuple():
            shown = [snapshot(item, held) for item in value]
        case set() | frozenset():
            shown = sorted(map(repr, value))
        case _ if callable(value):
            shown = id(value)
        case _:
            shown = (type(value).__name__, snapshot(vars(value), held))
    return shown
