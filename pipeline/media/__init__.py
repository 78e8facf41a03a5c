"""The only place that opens a container. What touches libav runs in the guarded child process (guard.py)."""
