"""The tables, for SQLite and PostgreSQL. Times are epoch seconds by the database's clock."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)


class now(FunctionElement[float]):
    """The database's clock, as seconds since the epoch: leases trust no other."""

    type = sa.Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite_now(element: now, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _postgresql_now(element: now, compiler: Any, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def _id(name: str = "id", **kw: Any) -> sa.Column[str]:
    return sa.Column(name, sa.String(64), **kw)


tenants = sa.Table(
    "tenants",
    metadata,
    _id(primary_key=True),
    sa.Column("name", sa.String(128), nullable=False, unique=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("served_at", sa.Double),  # when a worker last took one of its jobs
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    _id(primary_key=True),
    _id("tenant_id", nullable=False, index=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("prefix", sa.String(16), nullable=False),
    sa.Column("key_hash", sa.String(64), nullable=False, unique=True),
    sa.Column("scopes", sa.String(64), nullable=False, server_default="read write generate"),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
)

# A tenant's own limits; null where the operator's default holds, 0 where there is none.
tenant_quotas = sa.Table(
    "tenant_quotas",
    metadata,
    _id("tenant_id", primary_key=True),
    sa.Column("max_running_jobs", sa.BigInteger),
    sa.Column("max_queued_jobs", sa.BigInteger),
    sa.Column("max_stored_bytes", sa.BigInteger),
    sa.Column("max_tokens_per_day", sa.BigInteger),
    sa.Column("reads_per_minute", sa.BigInteger),
    sa.Column("writes_per_minute", sa.BigInteger),
    sa.Column("generations_per_minute", sa.BigInteger),
)

# Tokens by day since the epoch, of tenants that have a limit.
token_days = sa.Table(
    "token_days",
    metadata,
    _id("tenant_id", primary_key=True),
    sa.Column("day", sa.Integer, primary_key=True),
    sa.Column("tokens", sa.BigInteger, nullable=False),
)

# Triggers of the migration keep its rows as they were written.
audit = sa.Table(
    "audit",
    metadata,
    _id(primary_key=True),
    _id("tenant_id", nullable=False),
    sa.Column("actor", sa.String(16), nullable=False),
    _id("key_id"),
    sa.Column("request_id", sa.String(64)),
    sa.Column("action", sa.String(64), nullable=False),
    _id("object_id", nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Index("ix_audit_tenant_created", "tenant_id", "created_at", "id"),
    sa.Index("ix_audit_tenant_object", "tenant_id", "object_id"),
)

datasets = sa.Table(
    "datasets",
    metadata,
    _id(primary_key=True),
    _id("tenant_id", nullable=False),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("format", sa.String(16), nullable=False),
    sa.Column("row_type", sa.String(16), nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("duplicates", sa.BigInteger, nullable=False),
    sa.Column("warnings", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_after_s", sa.BigInteger),
    sa.Index("ix_datasets_tenant_created", "tenant_id", "created_at", "id"),
    sa.Index("ix_datasets_expires", "expires_after_s"),
)

# Files that come in parts. A completed one has its dataset, and no parts any more.
uploads = sa.Table(
    "uploads",
    metadata,
    _id(primary_key=True),
    _id("tenant_id", nullable=False),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("format", sa.String(16), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("expires_after_s", sa.BigInteger),
    sa.Column("status", sa.String(16), nullable=False),
    _id("dataset_id"),
    sa.Column("completed_by", sa.String(64)),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Index("ix_uploads_tenant_status", "tenant_id", "status"),
    sa.Index("ix_uploads_created_at", "created_at"),
)

upload_parts = sa.Table(
    "upload_parts",
    metadata,
    _id(primary_key=True),
    _id("upload_id", nullable=False, index=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

jobs = sa.Table(
    "jobs",
    metadata,
    _id(primary_key=True),
    _id("tenant_id", nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("queue", sa.String(32), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    _id("dataset_id", index=True),  # none of a merge
    sa.Column("base_revision", sa.String(128), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("losses", sa.Integer, nullable=False),
    sa.Column("requested", sa.String(16)),
    sa.Column("lease_owner", sa.String(128)),
    sa.Column("lease_expires_at", sa.Double),
    sa.Column("event_seq", sa.BigInteger, nullable=False),
    sa.Column("progress", sa.JSON, nullable=False),
    sa.Column("error", sa.JSON(none_as_null=True)),
    _id("adapter_id"),
    _id("pipeline_id"),
    sa.Column("stage", sa.String(32)),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("first_step_at", sa.Double),
    sa.Column("training_s", sa.Double),
    sa.Column("estimate", sa.JSON(none_as_null=True)),
    sa.Column("actual", sa.JSON(none_as_null=True)),
    sa.Column("finished_at", sa.Double),
    sa.Column("request_id", sa.String(64)),
    sa.Column("traceparent", sa.String(64)),
    sa.Index("ix_jobs_tenant_created", "tenant_id", "created_at", "id"),
    sa.Index("ix_jobs_claim", "queue", "status", "priority", "created_at"),
    sa.Index("ix_jobs_lease", "status", "lease_expires_at"),
    # A stage has one job, whoever starts it.
    sa.Index("ix_jobs_pipeline_stage", "pipeline_id", "stage", unique=True),
)

# The adapters that a job starts from, by the field that names them.
job_inputs = sa.Table(
    "job_inputs",
    metadata,
    _id("job_id", primary_key=True),
    sa.Column("field", sa.String(256), primary_key=True),
    _id("adapter_id", nullable=False, index=True),
)

pipelines = sa.Table(
    "pipelines",
    metadata,
    _id(primary_key=True),
    _id("tenant_id", nullable=False),
    sa.Column("name", sa.String(128)),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("queue", sa.String(32), nullable=False),
    sa.Column("cancelled_at", sa.Double),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("request_id", sa.String(64)),
    sa.Column("traceparent", sa.String(64)),
    sa.Index("ix_pipelines_tenant_created", "tenant_id", "created_at", "id"),
)

# `state`: waiting, then started (the job says how it goes on), skipped, cancelled or failed.
pipeline_stages = sa.Table(
    "pipeline_stages",
    metadata,
    _id("pipeline_id", primary_key=True),
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    _id("tenant_id", nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    _id("dataset_id", nullable=False, index=True),
    sa.Column("base_revision", sa.String(128), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Column("ended_at", sa.Double),
    sa.Index("ix_pipeline_stages_tenant_state", "tenant_id", "state"),
)

# What a stage starts from: an adapter's id, or `@stage` for the adapter that another one makes.
stage_inputs = sa.Table(
    "stage_inputs",
    metadata,
    _id("pipeline_id", primary_key=True),
    sa.Column("stage", sa.String(32), primary_key=True),
    sa.Column("field", sa.String(256), primary_key=True),
    sa.Column("source", sa.String(64), nullable=False, index=True),
)

# Written with the end of a stage's job, removed once its pipeline has moved on.
pipeline_turns = sa.Table(
    "pipeline_turns",
    metadata,
    _id("job_id", primary_key=True),
    _id("pipeline_id", nullable=False, index=True),
)

# How long finished jobs took, without a word of whose they were: estimates of others use it.
throughputs = sa.Table(
    "throughputs",
    metadata,
    _id(primary_key=True),
    sa.Column("queue", sa.String(32), nullable=False),
    sa.Column("base_model", sa.String(256), nullable=False),
    sa.Column("method", sa.String(32), nullable=False),
    sa.Column("peft", sa.String(32), nullable=False),
    sa.Column("token_passes", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("modelled_seconds", sa.Double, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Index("ix_throughputs_kind", "queue", "base_model", "method", "peft", "created_at"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    _id("job_id", primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("owner", sa.String(128), nullable=False),
    sa.Column("claimed_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double),
    sa.Column("outcome", sa.String(32)),
)

events = sa.Table(
    "events",
    metadata,
    _id("job_id", primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("level", sa.String(8), nullable=False),
    sa.Column("type", sa.String(16), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
)

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    _id(primary_key=True),
    _id("job_id", nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("files", sa.JSON, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Index("ix_checkpoints_job_step", "job_id", "step"),
)

adapters = sa.Table(
    "adapters",
    metadata,
    _id(primary_key=True),
    _id("tenant_id", nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("base_model", sa.String(256), nullable=False),
    _id("job_id"),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("manifest", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Index("ix_adapters_tenant_created", "tenant_id", "created_at", "id"),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    _id("tenant_id", primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("body_sha256", sa.String(64), nullable=False),
    _id("object_id", nullable=False),
    sa.Column("answer", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)
