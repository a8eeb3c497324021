"""Does a patch-level objective help? Methods x seeds at equal budget, scored alike, with intervals."""
