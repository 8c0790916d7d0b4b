"""Arrays in, arrays out: the paper's equations, tiles, regions and colors. No files, no clock, no logging."""
