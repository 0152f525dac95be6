"""Consumers of an extent map."""
