"""What each command does: one function a file, callable from a tutorial too."""
