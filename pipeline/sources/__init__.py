"""Where videos come from: each adapter turns inputs into rows of the `sources` table, before any work starts."""
