"""What Luthier promises of reliability and security: the rows of docs/reliability.md.

The figures are recorded by the tests (tests/record.py). `left_out` says what of a row is not run by
the project's own tests, and why.
"""

from typing import NamedTuple


class Promise(NamedTuple):
    promise: str
    target: str
    left_out: str = ""


RELIABILITY: dict[str, Promise] = {
    "R1": Promise(
        "a killed worker loses nothing",
        "25 random kills and 8 crash points: 0 jobs lost, 0 adapters twice; redone work at most "
        "`checkpoint_every`; running again within lease + sweep + start",
    ),
    "R2": Promise(
        "a paused owner cannot overwrite its successor",
        "0 late writes accepted; the stale attempt ends within 10 s of waking",
    ),
    "R3": Promise(
        "the same message twice is once",
        "8 workers, 200 jobs: exactly 1 claim an attempt; losers return in under 50 ms",
    ),
    "R4": Promise(
        "the API survives the broker",
        "POST 201 in under 1 s; started within 10 s of Redis' return; `/readyz` says degraded",
    ),
    "R5": Promise(
        "the broker's data is disposable",
        "100 of 100 jobs run after FLUSHALL; wake-ups sent again within a sweep",
    ),
    "R6": Promise(
        "the database may go away",
        "503 with Retry-After in under 2 s; workers fence themselves; 0 corrupt rows",
    ),
    "R7": Promise(
        "storage may fail, stall and cut",
        "30 % 503, 10 % timeouts, 5 % cut bodies: green; at most 5 tries and 60 s an operation, "
        "full jitter; no 4xx tried again",
    ),
    "R8": Promise(
        "a publish is atomic",
        "0 partial adapters seen in 1,000 interleavings",
    ),
    "R9": Promise(
        "bit rot is found",
        "every flipped byte refused, the file named",
    ),
    "R10": Promise(
        "a full disk fails the job, not the worker",
        "`disk_full`; the worker lives; 0 bytes left behind",
    ),
    "R11": Promise(
        "out of memory ends the job, not the service",
        "`out_of_memory` with advice; the next job starts within 10 s; at most 1 retry",
    ),
    "R12": Promise(
        "a rolling update costs no attempt",
        "SIGTERM: checkpoint and release within 60 s; another worker goes on",
    ),
    "R13": Promise(
        "cancel means stop",
        "100 cancels at random moments, the publish race too: ended within 15 s; never an adapter "
        "of a cancelled job",
    ),
    "R14": Promise(
        "a poison job ends",
        "`worker_lost` after 3 attempts; the others' throughput as before",
    ),
    "R15": Promise(
        "a POST that is repeated is one job",
        "100 at once with one key: 1 job, one answer; another body 422; tenants apart",
    ),
    "R16": Promise(
        "a resumed run is the same run",
        "20 steps and 10 + kill + 10: equal losses, bit for bit on a CPU; rows once an epoch",
    ),
    "R17": Promise(
        "clocks may lie",
        "workers 5 minutes fast and slow: 0 double claims; leases by the database's time alone",
    ),
    "R18": Promise(
        "an upload is all or nothing",
        "200 connections cut at random bytes: 0 datasets seen, 0 files and descriptors left; "
        "orphans collected after 24 h",
    ),
    "R19": Promise(
        "many pollers",
        "1,000 clients every 2 s on two cores: 0 errors, p99 at most 250 ms, memory +50 MB at most",
    ),
    "R20": Promise(
        "slow clients hold up nobody",
        "200 at 10 B/s beside the pollers: p99 at most 500 ms; given up after 30 s",
    ),
    "R21": Promise(
        "a big upload, small memory",
        "1 GiB JSONL: at most +64 MB, at least 40 MB/s",
    ),
    "R22": Promise(
        "no drift",
        "2,000 jobs of 5 tenants in 30 minutes: memory and descriptors flat, 0 zombies, 0 stuck "
        "leases",
    ),
    "R23": Promise(
        "a fair queue",
        "a tenant with 1 job waits at most 1 slot behind a tenant with 100",
    ),
    "R24": Promise(
        "health tells the truth",
        "`/healthz` is of the process alone; `/readyz` turns within 5 s, both ways",
    ),
    "R25": Promise(
        "a cluster may drain, kill and evict",
        "exit codes routed as documented; two pods for one job: R2",
    ),
}

SECURITY: dict[str, Promise] = {
    "S1": Promise(
        "no tenant reaches another's",
        "every operation with an id: 404, byte-equal to an unknown one; lists show nothing foreign",
    ),
    "S2": Promise("no anonymous access", "only `/healthz` and `/readyz` are open"),
    "S3": Promise(
        "tokens are hashed",
        "0 in plain text; 256 bits; revoked within 1 s; unknown and malformed are alike",
    ),
    "S4": Promise("inputs are bounded", "the corpus: always 4xx, never 5xx"),
    "S5": Promise("no request goes where a client points it", "0 connections to the canary"),
    "S6": Promise("weights are data", "the corpus: every file rejected with its own code"),
    "S7": Promise("no remote code", "the canary is never written; a template does not escape"),
    "S8": Promise("keys stay in their tenant's prefix", "any unicode: no `..`, no `//`"),
    "S9": Promise("logs are clean", "0 canaries in logs, events, metrics, traces and errors"),
    "S10": Promise("no mass assignment", "an extra field in any body: 422"),
    "S11": Promise(
        "quotas hold",
        "exact under a race of 100; 429 with Retry-After within 1 s of the truth",
    ),
    "S12": Promise(
        "the API does what its document says",
        "schemathesis, all checks, 200 cases an operation: 0 failures",
    ),
    "S13": Promise("the row parser takes anything", "any bytes: rows, or DatasetInvalid"),
    "S14": Promise("the broker is hostile ground", "a forged message does nothing"),
    "S15": Promise(
        "the supply chain and the image",
        "0 known high vulnerabilities; not root; read-only root file system",
    ),
}

PROMISES = RELIABILITY | SECURITY
