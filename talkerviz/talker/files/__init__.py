"""Files of the talker: checkpoints, codes, thinker outputs, WAV."""
