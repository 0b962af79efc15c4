"""What a planned run will cost."""
