"""Which vector stands for an image where whole images are classified."""

from typing import Literal

# "auto": the class token of a model that has one, else the mean of its patch tokens.
ImageVector = Literal["auto", "class_token", "mean", "class_token_and_mean"]
