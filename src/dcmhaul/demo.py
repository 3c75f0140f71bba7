"""The demonstration: two archives, real files, and a migration between them that proves itself.

Everything happens on this machine, over real associations on the loopback interface. Only the report
stays behind.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom.data
import trio

from dcmhaul._version import __version__
from dcmhaul.archive import open_archive
from dcmhaul.errors import DcmhaulError
from dcmhaul.library import serve
from dcmhaul.migrate import MigrateOptions, MigrationSummary, Progress, StopRequest, migrate
from dcmhaul.migrate.inventory import dataset_digest
from dcmhaul.migrate.rendering import write_report
from dcmhaul.migrate.upgrades import reading_ledger
from dcmhaul.objects.part10 import FileInstance
from dcmhaul.objects.sources import open_entries
from dcmhaul.objects.synth import SynthPlan, write_studies

if TYPE_CHECKING:
    from collections.abc import Callable

    from dcmhaul.archive import Archive
    from dcmhaul.net import Observer

__all__ = ["DemoResult", "run_demo"]

SYNTHETIC = (
    SynthPlan(studies=2, series=2, instances=30, modality="CT", seed="demo volume"),
    SynthPlan(
        studies=3, series=1, instances=4, modality="mix", seed="demo kinds", rows=256, columns=256
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demonstration did. report: the folder with report.html, report.json and report.md, which
    stays; the page is the migration's own, from its ledger.

    instances: held by both archives at the end. differences: SOP Instance UIDs that one archive lacks or
    whose dataset has another SHA-256; none where `verified`.
    """

    summary: MigrationSummary
    report: Path
    instances: int
    differences: tuple[str, ...]

    @property
    def verified(self) -> bool:
        return self.summary.exit_code == 0 and self.instances > 0 and not self.differences

    @property
    def exit_code(self) -> int:
        if self.verified:
            return 0
        return self.summary.exit_code or 11


async def run_demo(
    *,
    progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] | None = None,
    report_folder: Path | None = None,
    observer: Observer | None = None,
    stop: StopRequest | None = None,
    associations: int = 4,
    window: int = 8,
) -> DemoResult:
    """Fills one embedded archive, migrates it to another over the network, compares both.

    progress: that of `migrate`. say: one line for each step. report_folder: where the report goes; None
    makes a folder of its own beside the other temporary ones. The archives are removed again. Raises
    DcmhaulError where a step could not be made.
    """
    tell = say or (lambda _text: None)
    kept = report_folder or Path(tempfile.mkdtemp(prefix="dcmhaul-demo-"))
    with tempfile.TemporaryDirectory(prefix="dcmhaul-demo-data-") as name:
        root = Path(name)
        async with (
            open_archive(root / "old", ae_title="OLD") as old,
            open_archive(root / "new", ae_title="NEW") as new,
            serve(old.services(), ae_title=old.ae_title) as source,
            serve(new.services(), ae_title=new.ae_title) as destination,
        ):
            tell(f"two archives: {source} and {destination}")
            await _fill(old, root / "made", tell)
            ledger = f"sqlite:///{root / 'ledger.db'}"
            summary = await migrate(
                MigrateOptions(
                    source=source,
                    destination=destination,
                    ledger_url=ledger,
                    job="demo",
                    verify="digest",
                    associations=associations,
                    window=window,
                ),
                progress=progress,
                observer=observer,
                stop=stop,
            )
        await trio.to_thread.run_sync(_write_page, ledger, kept)
        digests = [
            await trio.to_thread.run_sync(_digests, root / folder) for folder in ("old", "new")
        ]
    result = DemoResult(
        summary=summary,
        report=kept,
        instances=len(digests[0].keys() & digests[1].keys()),
        differences=_differences(*digests),
    )
    await trio.to_thread.run_sync(_write_report, result)
    return result


async def _fill(archive: Archive, folder: Path, tell: Callable[[str], None]) -> None:
    """Real files of many kinds, and synthetic studies for some volume."""
    real = await trio.to_thread.run_sync(_real_files)
    tell(f"{len(real)} real files of pydicom's collection, each SOP Instance UID once")
    made = await trio.to_thread.run_sync(_synthetic_files, folder)
    tell(f"{len(made)} synthetic instances")
    imported = await archive.import_files([*real, *made], source_ae_title="DEMO")
    if imported.failed or imported.conflicts:
        path, reason = (imported.failed or [(imported.conflicts[0], "conflict")])[0]
        raise DcmhaulError(f"the demonstration's archive did not take {path}: {reason}")
    holds = archive.statistics().holds
    tell(f"OLD holds {holds.studies} studies, {holds.instances} instances, {holds.bytes} bytes")
    await trio.to_thread.run_sync(shutil.rmtree, folder)


def _real_files() -> list[str]:
    """pydicom's test files that an archive can hold: whole, with Study and Series UID."""
    found: dict[str, str] = {}
    test_files = Path(pydicom.data.__file__).parent / "test_files"
    for entry in open_entries([test_files]):
        if isinstance(entry, FileInstance):
            entry.close()
            if entry.study_instance_uid and entry.series_instance_uid:
                found.setdefault(entry.sop_instance_uid, entry.path)
    return list(found.values())


def _synthetic_files(folder: Path) -> list[Path]:
    for number, plan in enumerate(SYNTHETIC):
        write_studies(folder / str(number), **asdict(plan))
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digests(folder: Path) -> dict[str, tuple[str, bytes]]:
    """What lies on the disk of an archive: SOP Instance UID -> syntax and SHA-256 of the dataset."""
    found = {}
    for entry in open_entries([folder]):
        if isinstance(entry, FileInstance):
            found[entry.sop_instance_uid] = (entry.transfer_syntax_uid, dataset_digest(entry))
            entry.close()
    return found


def _differences(
    old: dict[str, tuple[str, bytes]], new: dict[str, tuple[str, bytes]]
) -> tuple[str, ...]:
    return tuple(sorted(uid for uid in old.keys() | new.keys() if old.get(uid) != new.get(uid)))


def _write_page(ledger: str, folder: Path) -> None:
    """The migration's report, as `dcmhaul report demo -o report.html` would write it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "report.html").open("w", encoding="utf-8") as stream,
        reading_ledger(ledger) as connection,
    ):
        write_report(connection, "demo", "html", stream)


def _write_report(result: DemoResult) -> None:
    summary = result.summary
    record: dict[str, Any] = {
        "dcmhaul": __version__,
        "verified": result.verified,
        "instances_at_both_ends": result.instances,
        "differences": list(result.differences),
        "migration": summary.as_dict(),
    }
    (result.report / "report.json").write_text(json.dumps(record, indent=2) + "\n")
    verdict = "hold the same" if result.verified else "DIFFER"
    lines = [
        "# dcmhaul demonstration",
        "",
        f"{summary.source} was migrated to {summary.destination}; both archives {verdict}:",
        f"{result.instances} instances, compared by UID, transfer syntax and SHA-256 of the dataset.",
        "",
        "| | |",
        "| --- | ---: |",
        f"| studies | {summary.studies} |",
        f"| instances moved | {summary.instances} |",
        f"| already there | {summary.already} |",
        f"| failed | {summary.failed} |",
        f"| bytes | {summary.bytes} |",
        f"| seconds | {summary.seconds:.2f} |",
        f"| MiB/s | {summary.mib_per_s:.1f} |",
        f"| instances/s | {summary.instances_per_s:.0f} |",
        f"| verified | {summary.verify} |",
        "",
    ]
    lines += [f"- failed: {failure}" for failure in summary.failures]
    lines += [f"- differs: {uid}" for uid in result.differences]
    (result.report / "report.md").write_text("\n".join(lines).rstrip() + "\n")
