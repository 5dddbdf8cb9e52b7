"""estimates, and what jobs took

Revision: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('throughputs',
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('queue', sa.String(length=32), nullable=False),
    sa.Column('base_model', sa.String(length=256), nullable=False),
    sa.Column('method', sa.String(length=32), nullable=False),
    sa.Column('peft', sa.String(length=32), nullable=False),
    sa.Column('token_passes', sa.BigInteger(), nullable=False),
    sa.Column('seconds', sa.Double(), nullable=False),
    sa.Column('modelled_seconds', sa.Double(), nullable=False),
    sa.Column('created_at', sa.Double(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_throughputs'))
    )
    op.create_index('ix_throughputs_kind', 'throughputs', ['queue', 'base_model', 'method', 'peft', 'created_at'])

    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.add_column(sa.Column('estimate', sa.JSON(none_as_null=True), nullable=True))
        batch_op.add_column(sa.Column('actual', sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.drop_column('actual')
        batch_op.drop_column('estimate')

    op.drop_index('ix_throughputs_kind', table_name='throughputs')
    op.drop_table('throughputs')
