"""What a run will take, before any work: from headers, and from rates that say where they come from."""
