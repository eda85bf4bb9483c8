"""Kubernetes objects as plain values; pure."""
