"""Random crops and colors: parameters, geometry, photometric changes."""
