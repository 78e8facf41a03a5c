"""The run folder: what is committed, what is rejected, what is live, and who may write."""
