"""Every command as a Python function. Only this layer knows all the parts."""
