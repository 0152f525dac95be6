"""System calls; the only rooms that understand an errno."""
