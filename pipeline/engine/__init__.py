"""Runs stages over a run folder: in this process (`local`) or on Ray (`ray_data`)."""
