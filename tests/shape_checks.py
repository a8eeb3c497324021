"""The checker behind pytest's jaxtyping hook: every annotated function and dataclass of the package, on every call."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as everywhere in Python's typing
