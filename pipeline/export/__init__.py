"""What the export stage writes, one file for each thing: rows, shards, the LLaVA pair, the card."""
