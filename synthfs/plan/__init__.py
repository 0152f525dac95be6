"""What should be: from facts to disks, maps and recipes. Pure."""
