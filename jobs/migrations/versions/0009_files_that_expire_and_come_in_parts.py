"""files that expire, and files that come in parts

Revision: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = '0009'
down_revision = '0008'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('datasets', sa.Column('expires_after_s', sa.BigInteger(), nullable=True))
    op.create_index('ix_datasets_expires', 'datasets', ['expires_after_s'])
    op.create_table('uploads',
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('tenant_id', sa.String(length=64), nullable=False),
    sa.Column('name', sa.String(length=256), nullable=False),
    sa.Column('format', sa.String(length=16), nullable=False),
    sa.Column('size_bytes', sa.BigInteger(), nullable=False),
    sa.Column('expires_after_s', sa.BigInteger(), nullable=True),
    sa.Column('status', sa.String(length=16), nullable=False),
    sa.Column('dataset_id', sa.String(length=64), nullable=True),
    sa.Column('completed_by', sa.String(length=64), nullable=True),
    sa.Column('created_at', sa.Double(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_uploads'))
    )
    op.create_index('ix_uploads_tenant_status', 'uploads', ['tenant_id', 'status'])
    op.create_index('ix_uploads_created_at', 'uploads', ['created_at'])
    op.create_table('upload_parts',
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('upload_id', sa.String(length=64), nullable=False),
    sa.Column('size_bytes', sa.BigInteger(), nullable=False),
    sa.Column('created_at', sa.Double(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_upload_parts'))
    )
    op.create_index('ix_upload_parts_upload_id', 'upload_parts', ['upload_id'])


def downgrade() -> None:
    op.drop_table('upload_parts')
    op.drop_table('uploads')
    op.drop_index('ix_datasets_expires', table_name='datasets')
    with op.batch_alter_table('datasets', schema=None) as batch_op:
        batch_op.drop_column('expires_after_s')
