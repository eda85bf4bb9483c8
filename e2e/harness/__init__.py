"""What the end-to-end tests and the demo use: a hub, a person, an administrator, faults."""
