"""What runs as `synthfs` and as `python -m synthfs`, by hand and for mount.fuse3(8).

Not for: what a failure looks like (`cli/main`), but for Ctrl-C while Python still reads the program.
"""

import sys


def main() -> None:
    try:
        from synthfs.cli.main import VERBS
        from synthfs.cli.main import main as run

        # `mount -t fuse.synthfs` runs `synthfs STORE MOUNTPOINT -o OPTIONS`.
        if sys.argv[3:4] == ["-o"] and sys.argv[1] not in VERBS and not sys.argv[1].startswith("-"):
            from synthfs.cli.fstab import main as run
    except KeyboardInterrupt:
        print("synthfs: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
