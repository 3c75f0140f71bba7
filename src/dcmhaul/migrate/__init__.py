"""Study migration between peers and folders: inventory, plan, transfer, ledger, verification, report.

`migrate(options, progress=..., observer=..., stop=...)` runs or resumes a job; `StopRequest.request`
stops it.
"""

from dcmhaul.engine.scheduler import StopRequest
from dcmhaul.migrate.plan import (
    Endpoint,
    MigrateOptions,
    Verification,
    default_ledger_url,
    job_name,
)
from dcmhaul.migrate.report import Failure, MigrationSummary, Progress
from dcmhaul.migrate.run import migrate

__all__ = [
    "Endpoint",
    "Failure",
    "MigrateOptions",
    "MigrationSummary",
    "Progress",
    "StopRequest",
    "Verification",
    "default_ledger_url",
    "job_name",
    "migrate",
]
