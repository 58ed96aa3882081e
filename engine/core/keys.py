"""Names of everything that the engine keeps in Redis.

All keys of a partition share the hash tag ``{namespace:NN}``, so that one script touches one cluster slot. Caches and
rate limiters keep theirs below tags of their own, ``{namespace/...}``, all over the slots: no namespace has a ``/`` in
its name, and who looks through records never meets them.
"""

from dataclasses import dataclass, field
from zlib import crc32

__all__ = ["Keys"]


@dataclass(frozen=True, slots=True)
class Keys:
    """The key names of one namespace.

    Args:
        namespace: the namespace's name.
        partitions: how many partitions it has.
    """

    namespace: str
    partitions: int
    logs: tuple[str, ...] = field(init=False)
    metas: tuple[str, ...] = field(init=False)
    stems: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        stems = tuple(f"wb:{{{self.namespace}:{number:02d}}}:" for number in range(self.partitions))
        object.__setattr__(self, "stems", stems)
        object.__setattr__(self, "logs", tuple(stem + "log" for stem in stems))
        object.__setattr__(self, "metas", tuple(stem + "meta" for stem in stems))

    @property
    def shared(self) -> str:
        """Name of the hash with what all processes of the namespace must agree on."""
        return f"wb:{{{self.namespace}}}:shared"

    @property
    def reads(self) -> str:
        """Name of the hash with the counts of reads, summed over processes."""
        return f"wb:{{{self.namespace}}}:reads"

    @property
    def cache_reads(self) -> str:
        """Name of the hash with the counts of reads of caches, summed over processes."""
        return f"wb:{{{self.namespace}}}:cache-reads"

    def flushed(self, rows_per_second: int) -> str:
        """Name of the sorted set with the hits of flushers that share a rate; another rate has another one."""
        return f"wb:{{{self.namespace}}}:flushed:{rows_per_second}"

    def hits(self, limiter: str, subject: bytes) -> bytes:
        """Name of the sorted set with a subject's hits; each subject has a slot of its own."""
        return f"wb:{{{self.namespace}/{limiter}/".encode() + subject + b"}:hits"

    def record(self, partition: int, table: str, key_text: str) -> str:
        """Name of a record's hash."""
        return f"{self.stems[partition]}{table}:{key_text}"

    def cache_version(self, cache: str) -> str:
        """Name of the string that says which version of a cache counts."""
        return f"wb:{{{self.namespace}}}:cache:{cache}"

    def cache_channel(self, cache: str) -> str:
        """Name of the channel on which a cache's invalidations are announced."""
        return f"wb:{{{self.namespace}}}:cache:{cache}"

    def cache_entry(self, cache: str, version: str, key_text: str) -> str:
        """Name of the hash with a cached value and the lease for loading it."""
        return f"wb:{{{self.namespace}/{crc32(key_text.encode()):08x}}}:{cache}:{version}:{key_text}"
