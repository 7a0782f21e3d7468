"""Every size and every count the wire accepts, with the reason beside it."""

from __future__ import annotations

CHUNK_BYTES = 1 << 20
"""A vector travels in pieces of this size: large enough that framing costs nothing, small enough to buffer many."""

MESSAGE_BYTES = 4 << 20
"""gRPC refuses a larger message before it is parsed: a chunk or the largest cohort's keys and shares fit in it."""

METADATA_BYTES = 8 << 10
"""Nothing of ours travels in metadata except a site id under --insecure."""

TENSORS = 64
"""Tensors in one announced state: the parameters and an optimizer's moments are four."""

TENSOR_DIMENSIONS = 8
"""Axes of one announced tensor."""

MODEL_BYTES = 8 << 30
"""Announced state of a model; the site also compares it with what its own policy says."""

NAME_CHARACTERS = 200
"""Names, codes, run ids and reasons: they are shown to people and written to logs."""
