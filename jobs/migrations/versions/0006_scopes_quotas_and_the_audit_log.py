"""scopes of keys, quotas of tenants, and who did what

Revision: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None

LIMITS = (
    'max_running_jobs', 'max_queued_jobs', 'max_stored_bytes', 'max_tokens_per_day',
    'reads_per_minute', 'writes_per_minute', 'generations_per_minute',
)


def upgrade() -> None:
    # Keys of before go on working: with everything that they could do then.
    with op.batch_alter_table('api_keys', schema=None) as batch_op:
        batch_op.add_column(sa.Column('scopes', sa.String(length=64), nullable=False, server_default='read write generate'))

    op.create_table('tenant_quotas',
    sa.Column('tenant_id', sa.String(length=64), nullable=False),
    *(sa.Column(name, sa.BigInteger(), nullable=True) for name in LIMITS),
    sa.PrimaryKeyConstraint('tenant_id', name=op.f('pk_tenant_quotas'))
    )
    op.create_table('token_days',
    sa.Column('tenant_id', sa.String(length=64), nullable=False),
    sa.Column('day', sa.Integer(), nullable=False),
    sa.Column('tokens', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('tenant_id', 'day', name=op.f('pk_token_days'))
    )
    op.create_table('audit',
    sa.Column('id', sa.String(length=64), nullable=False),
    sa.Column('tenant_id', sa.String(length=64), nullable=False),
    sa.Column('actor', sa.String(length=16), nullable=False),
    sa.Column('key_id', sa.String(length=64), nullable=True),
    sa.Column('request_id', sa.String(length=64), nullable=True),
    sa.Column('action', sa.String(length=64), nullable=False),
    sa.Column('object_id', sa.String(length=64), nullable=False),
    sa.Column('created_at', sa.Double(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_audit'))
    )
    op.create_index('ix_audit_tenant_created', 'audit', ['tenant_id', 'created_at', 'id'])
    op.create_index('ix_audit_tenant_object', 'audit', ['tenant_id', 'object_id'])
    _keep_the_audit_log()


def _keep_the_audit_log() -> None:
    """Its rows cannot be changed or removed, by whatever code."""
    if op.get_bind().dialect.name == 'sqlite':
        for verb in ('UPDATE', 'DELETE'):
            op.execute(
                f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit "
                "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()"
    )


def downgrade() -> None:
    op.drop_table('audit')
    if op.get_bind().dialect.name == 'postgresql':
        op.execute("DROP FUNCTION audit_is_append_only()")
    op.drop_table('token_days')
    op.drop_table('tenant_quotas')
    with op.batch_alter_table('api_keys', schema=None) as batch_op:
        batch_op.drop_column('scopes')
