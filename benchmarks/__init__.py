"""What the README and the notes claim of speed, memory and fidelity, measured."""
