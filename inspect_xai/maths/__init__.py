"""Arrays in, arrays out: the paper's equations, tiles, regions and colours. No files, no clock, no logging."""
