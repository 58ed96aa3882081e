"""Which partition a key belongs to.

The partition decides order, lease and Redis slot, so every writer of a namespace, in every release
and on every machine, has to compute the same one.
"""

from zlib import crc32

__all__ = ["partition_of"]


def partition_of(text: str, partitions: int) -> int:
    """Return the partition, 0 to ``partitions - 1``, of a canonical key text.

    CRC-32 (IEEE 802.3) of the UTF-8 bytes: stable across processes and releases, unlike ``hash``,
    even for sequential numbers, and computable in any language. Changing it or ``partitions``
    moves keys away from their log entries.

    Args:
        text: the key text, or the text of the ``partition_by`` column alone.
        partitions: how many the namespace has, at least 1.
    """
    return crc32(text.encode()) % partitions
