"""Other processing elements, written plainly, to be put through the same flow as ours."""
