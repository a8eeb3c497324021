"""Student, teacher and the loop that trains them."""
