"""The administrator's command; one module a subcommand."""
