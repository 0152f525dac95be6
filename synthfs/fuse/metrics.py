"""What a mount counts about itself, and the same as Prometheus text.

Counted on the event loop only, so that a plain `+=` will do; what is shown is noted by the thread that grew it. Not for:
deciding anything by it. Units: bytes, seconds.
Source: Prometheus' text exposition format 0.0.4.
"""

from dataclasses import dataclass, field

BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)


@dataclass(slots=True)
class Metrics:
    """Counters since the mount was made, and the state of its last refresh."""

    reads: int = 0
    read_bytes: int = 0
    read_seconds: float = 0.0
    errors: int = 0
    bugs: int = 0
    refreshes: int = 0
    failed_refreshes: int = 0
    refresh_seconds: float = 0.0
    disks: int = 0
    pending: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))

    def count_read(self, length: int, seconds: float) -> None:
        self.reads += 1
        self.read_bytes += length
        self.read_seconds += seconds
        bucket = 0
        while bucket < len(BUCKETS) and seconds > BUCKETS[bucket]:
            bucket += 1
        self.buckets[bucket] += 1

    def text(self, open_handles: int, held: int, dropped: int) -> str:
        """All of it. `held` is the length of backups that were deleted and are still open, `dropped` lines the log lost."""
        rows = [
            *_metric("synthfs_disks", "gauge", "Disks that the mount shows.", self.disks),
            *_metric("synthfs_pending", "gauge", "Files that wait until the holes of their backups are known.", self.pending),
            *_header("synthfs_skipped", "gauge", "Images that it does not show, by reason."),
            *(f'synthfs_skipped{{reason="{_escaped(reason)}"}} {count}' for reason, count in sorted(self.skipped.items())),
            *_metric("synthfs_open_handles", "gauge", "Files that are open.", open_handles),
            *_metric("synthfs_deleted_bytes_held", "gauge", "Length of deleted backups that open files keep.", held),
            *_metric("synthfs_read_bytes_total", "counter", "Bytes that were read.", self.read_bytes),
            *_metric("synthfs_errors_total", "counter", "Requests that ended in an error.", self.errors),
            *_metric("synthfs_bugs_total", "counter", "Of these, errors of the program itself.", self.bugs),
            *_metric("synthfs_log_lines_dropped_total", "counter", "Lines of the log that nobody took.", dropped),
            *_metric("synthfs_refreshes_total", "counter", "Scans of the store.", self.refreshes),
            *_metric("synthfs_failed_refreshes_total", "counter", "Scans that failed.", self.failed_refreshes),
            *_metric("synthfs_refresh_seconds", "gauge", "Time that the last scan took.", round(self.refresh_seconds, 6)),
            *_header("synthfs_read_seconds", "histogram", "Time that reads took."),
        ]
        total = 0
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self.buckets, strict=True):
            total += count
            rows.append(f'synthfs_read_seconds_bucket{{le="{bound}"}} {total}')
        rows += [f"synthfs_read_seconds_sum {self.read_seconds:.6f}", f"synthfs_read_seconds_count {self.reads}", ""]
        return "\n".join(rows)


def _header(name: str, kind: str, meaning: str) -> tuple[str, str]:
    return f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"


def _metric(name: str, kind: str, meaning: str, value: float) -> tuple[str, str, str]:
    return *_header(name, kind, meaning), f"{name} {value}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
