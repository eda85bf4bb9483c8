"""One server from its start to its end; and objects that nobody owns."""
