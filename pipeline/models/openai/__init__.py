"""A describer on any OpenAI-compatible endpoint."""
