"""Codecs: bytes in, values out, and back. Pure."""
