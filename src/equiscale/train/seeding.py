"""Independent random streams from one seed."""

import zlib

import numpy as np


def derive_seed(seed: int, stream: str, index: int = 0) -> int:
    """A 63-bit seed for a named stream, independent of the others.

    Args:
        seed: The run's seed.
        stream: What the numbers are for, for example "weights" or "batches".
        index: For example the epoch: every epoch has its own seed, so a resumed training needs no
            saved generator.

    Example:
        >>> derive_seed(0, "batches", 1) != derive_seed(0, "batches", 2)
        True
    """
    sequence = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), index])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
