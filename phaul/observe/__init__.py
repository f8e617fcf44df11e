"""What an agent tells of itself: its log."""
