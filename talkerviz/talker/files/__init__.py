"""Files that the talker reads and writes: checkpoints, codes, thinker outputs, WAV."""
