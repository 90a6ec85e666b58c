"""From what was measured to metrics, a group a file."""
