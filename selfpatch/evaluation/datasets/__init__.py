"""Labelled data as the benchmarks lay it out."""
