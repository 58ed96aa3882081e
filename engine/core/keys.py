"""Names of everything that the engine keeps in Redis.

All keys of a partition share the hash tag ``{namespace:NN}``, so that one script touches one cluster slot.
"""

from dataclasses import dataclass, field

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

    def record(self, partition: int, table: str, key_text: str) -> str:
        """Name of a record's hash."""
        return f"{self.stems[partition]}{table}:{key_text}"
