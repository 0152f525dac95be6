"""What UrBackup leaves on disk: its files, its names, its database."""
