"""The mount: the only async code, and the only place that speaks errno to the kernel."""
