"""Models behind small protocols: `spec` names one, `registry` finds it, `protocols` says what it can do."""
