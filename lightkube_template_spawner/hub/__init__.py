"""What we must know of JupyterHub."""
