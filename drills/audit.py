"""The audit: every committed move of an offset, written down by the database itself, so that no flusher gets around it.

On a database of the user's, which other namespaces may share, nothing is added to the engine's tables; there the
observer's snapshots have to do.
"""

import sqlalchemy as sa

from writebehind.drills.checkers import Audited

__all__ = ["Audit"]

audit = sa.Table(
    "wb_drill_audit",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
)
INSERT = (
    "INSERT INTO wb_drill_audit (number, token, epoch, sequence)"
    " VALUES (NEW.{partition}, NEW.token, NEW.epoch, NEW.sequence)"
)
MADE = {
    "sqlite": [
        "CREATE TRIGGER wb_drill_audited AFTER UPDATE OF sequence ON writebehind_partitions"
        " WHEN NEW.sequence <> OLD.sequence OR NEW.epoch <> OLD.epoch BEGIN "
        + INSERT.format(partition='"partition"')
        + "; END"
    ],
    "postgresql": [
        "CREATE FUNCTION wb_drill_audited() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.sequence <> OLD.sequence OR NEW.epoch <> OLD.epoch THEN "
        + INSERT.format(partition='"partition"')
        + "; END IF; RETURN NEW; END $$",
        (
            "CREATE TRIGGER wb_drill_audited AFTER UPDATE OF sequence ON writebehind_partitions"
            " FOR EACH ROW EXECUTE FUNCTION wb_drill_audited()"
        ),
    ],
    "mysql": [
        "CREATE TRIGGER wb_drill_audited AFTER UPDATE ON writebehind_partitions FOR EACH ROW BEGIN "
        "IF NEW.sequence <> OLD.sequence OR NEW.epoch <> OLD.epoch THEN "
        + INSERT.format(partition="`partition`")
        + "; END IF; END"
    ],
}


class Audit:
    """The audit of one drill.

    Args:
        database: where it is kept.
        intrusive: whether triggers may be added; otherwise there is no audit.
    """

    def __init__(self, database: sa.Engine, *, intrusive: bool) -> None:
        self._database = database
        self._dialect = database.dialect.name.replace("mariadb", "mysql")
        self.kept = intrusive
        if intrusive:
            audit.create(database)
            self._make()

    def read(self) -> list[Audited]:
        """Return the moves in their order."""
        query = sa.select(audit.c.number, audit.c.token, audit.c.epoch, audit.c.sequence).order_by(audit.c.id)
        with self._database.connect() as connection:
            return [Audited(*row) for row in connection.execute(query)]

    def _make(self) -> None:
        with self._database.begin() as connection:
            for statement in MADE[self._dialect]:
                connection.exec_driver_sql(statement)
