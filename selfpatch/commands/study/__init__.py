"""`selfpatch study`: which start and which recipe is best on these images; candidates at equal budgets, ranked."""
