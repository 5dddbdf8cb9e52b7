"""longer fields of inputs: a grader in a grader in a grader names a model

Revision: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None

TABLES = ('job_inputs', 'stage_inputs')


def upgrade() -> None:
    _resize(32, 256)


def downgrade() -> None:
    _resize(256, 32)


def _resize(before: int, after: int) -> None:
    for table in TABLES:
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.alter_column(
                'field',
                existing_type=sa.String(length=before),
                type_=sa.String(length=after),
                existing_nullable=False,
            )
