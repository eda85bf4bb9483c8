"""The cluster on a machine without a container engine: host processes, Linux, root."""
