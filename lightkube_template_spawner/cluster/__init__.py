"""The API server: one client, one store a kind, one writer."""
