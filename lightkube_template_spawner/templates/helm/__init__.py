"""Helm as a library or as a command."""
