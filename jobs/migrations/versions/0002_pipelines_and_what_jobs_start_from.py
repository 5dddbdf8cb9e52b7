"""pipelines, and what jobs start from

Revision: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('job_inputs',
    sa.Column('job_id', sa.String(length=64), nullable=False),
    sa.Column('field', sa.String(length=32), nullable=False),
    sa.Column('adapter_id', sa.String(length=64), nullable=False),
    sa.PrimaryKeyConstraint('job_id', 'field', name=op.f('pk_job_inputs'))
    )
    op.create_index(op.f('ix_job_inputs_adapter_id'), 'job_inputs', ['adapter_id'])

    op.create_table('pipelines',
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('tenant_id', sa.String(length=64), nullable=False),
    sa.Column('name', sa.String(length=128), nullable=True),
    sa.Column('metadata', sa.JSON(), nullable=False),
    sa.Column('queue', sa.String(length=32), nullable=False),
    sa.Column('cancelled_at', sa.Double(), nullable=True),
    sa.Column('created_at', sa.Double(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_pipelines'))
    )
    op.create_index('ix_pipelines_tenant_created', 'pipelines', ['tenant_id', 'created_at', 'id'])

    op.create_table('pipeline_stages',
    sa.Column('pipeline_id', sa.String(length=64), nullable=False),
    sa.Column('name', sa.String(length=32), nullable=False),
    sa.Column('position', sa.Integer(), nullable=False),
    sa.Column('tenant_id', sa.String(length=64), nullable=False),
    sa.Column('spec', sa.JSON(), nullable=False),
    sa.Column('dataset_id', sa.String(length=64), nullable=False),
    sa.Column('base_revision', sa.String(length=128), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('error', sa.JSON(none_as_null=True), nullable=True),
    sa.Column('ended_at', sa.Double(), nullable=True),
    sa.PrimaryKeyConstraint('pipeline_id', 'name', name=op.f('pk_pipeline_stages'))
    )
    op.create_index(op.f('ix_pipeline_stages_dataset_id'), 'pipeline_stages', ['dataset_id'])
    op.create_index('ix_pipeline_stages_tenant_state', 'pipeline_stages', ['tenant_id', 'state'])

    op.create_table('stage_inputs',
    sa.Column('pipeline_id', sa.String(length=64), nullable=False),
    sa.Column('stage', sa.String(length=32), nullable=False),
    sa.Column('field', sa.String(length=32), nullable=False),
    sa.Column('source', sa.String(length=64), nullable=False),
    sa.PrimaryKeyConstraint('pipeline_id', 'stage', 'field', name=op.f('pk_stage_inputs'))
    )
    op.create_index(op.f('ix_stage_inputs_source'), 'stage_inputs', ['source'])

    op.create_table('pipeline_turns',
    sa.Column('job_id', sa.String(length=64), nullable=False),
    sa.Column('pipeline_id', sa.String(length=64), nullable=False),
    sa.PrimaryKeyConstraint('job_id', name=op.f('pk_pipeline_turns'))
    )
    op.create_index(op.f('ix_pipeline_turns_pipeline_id'), 'pipeline_turns', ['pipeline_id'])

    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.add_column(sa.Column('pipeline_id', sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column('stage', sa.String(length=32), nullable=True))
        batch_op.create_index('ix_jobs_pipeline_stage', ['pipeline_id', 'stage'], unique=True)

    with op.batch_alter_table('idempotency_keys', schema=None) as batch_op:
        batch_op.alter_column('job_id', new_column_name='object_id')


def downgrade() -> None:
    with op.batch_alter_table('idempotency_keys', schema=None) as batch_op:
        batch_op.alter_column('object_id', new_column_name='job_id')

    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.drop_index('ix_jobs_pipeline_stage')
        batch_op.drop_column('stage')
        batch_op.drop_column('pipeline_id')

    op.drop_table('pipeline_turns')
    op.drop_table('stage_inputs')
    op.drop_table('pipeline_stages')
    op.drop_table('pipelines')
    op.drop_table('job_inputs')
