"""Batches of crops: which image and which random numbers, worker processes, copies to the device."""
