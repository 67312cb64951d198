"""What the user can put right."""

__all__ = ["DemoError"]


class DemoError(ValueError):
    """A directory or file that the demonstration cannot work with; the message is for the user."""
