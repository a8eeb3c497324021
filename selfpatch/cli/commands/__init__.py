"""What each command is called with: its options, and the function that it runs. Nothing here imports torch."""
