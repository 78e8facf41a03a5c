"""A describer on vLLM, in the process that holds it."""
