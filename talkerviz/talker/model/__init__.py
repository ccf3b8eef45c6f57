"""The talker's modules and configs; nothing here imports the other packages of the talker."""
