"""Numbers and pictures of a run for the programs that show them: an interface, and one file per tracker."""
