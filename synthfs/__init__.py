"""synthfs presents UrBackup RAW image backups as whole disks that Windows can attach."""

__version__ = "0.1.0"
