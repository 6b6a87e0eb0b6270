"""Features of speech in a cache on disk, for trainings that read them many times."""
