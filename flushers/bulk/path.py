"""What every way of writing a table's changes to SQL promises."""

from typing import Protocol

from sqlalchemy import Connection

from writebehind.engine.adapters.declaration import DeclaredTable
from writebehind.engine.core.coalescing import TableChanges

__all__ = ["BulkPath"]


class BulkPath(Protocol):
    """Writes one table's coalesced changes inside the caller's open transaction.

    A path never commits, never rolls back and never swallows an exception: after any exception the
    caller must roll back to before the call. Deletes are a call of their own, because they go
    through the tables in reverse foreign-key order.

    Durability: nothing, until the caller's commit.
    Repeat: doubles increments and inserts; the offset in the same transaction is what prevents it.
    Crash: the database rolls the transaction back as a whole.
    """

    def apply(self, connection: Connection, declared: DeclaredTable, changes: TableChanges) -> int:
        """Write the appended and inserted rows, the puts and the updates, in this order.

        Returns:
            How many updates found no row and had none to create.

        Raises:
            ConfigurationError: an entry names a column that the table's declaration does not have.
            PoisonEntryError: keys that differ on the wire are equal in the database, or a value is not of its
                column's type; halves of the batch may pass.
            sqlalchemy.exc.DBAPIError: what the driver raised, IntegrityError for any row that exists
                under another key.
        """
        ...

    def delete(self, connection: Connection, declared: DeclaredTable, changes: TableChanges) -> None:
        """Delete the rows of ``changes.deletes``; a row that is not there is no error.

        Raises:
            PoisonEntryError: a key is not of its column's type.
            sqlalchemy.exc.DBAPIError: what the driver raised.
        """
        ...
