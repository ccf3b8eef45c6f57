"""Files for other viewers of timelines and flame graphs."""
