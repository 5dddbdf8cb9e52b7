"""the request and the trace that jobs and pipelines come from

Revision: 0007
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None

TABLES = ('jobs', 'pipelines')


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column('request_id', sa.String(64)))
        op.add_column(table, sa.Column('traceparent', sa.String(64)))


def downgrade() -> None:
    for table in TABLES:
        with op.batch_alter_table(table) as batch_op:
            batch_op.drop_column('traceparent')
            batch_op.drop_column('request_id')
