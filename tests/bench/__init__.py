"""What scripts/bench is made of: rows of one table, measured in turns on the same bytes.

    row        a line of the table: contestants, goals, and how they are measured
    rig        what rows share: a laboratory, the store, clocks, caches; peers serves the same disk in other ways
    reading, smb, freezing, zfs ...      each a generator of rows, which holds what they need while they are measured
    report     the table, the JSON, the plots

To add a row: a function `rows(rig) -> Iterator[Row]` in a module of its own, and its name in `scripts/bench`.
Not for: judging a build. No test asserts a time; the run says which goals were met, and docs/performance.md says why.
"""
