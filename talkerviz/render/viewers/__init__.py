"""Files for other viewers of time lines and flame graphs."""
