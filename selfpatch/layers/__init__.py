"""Pieces of networks with several users."""
